// Attention for what the tensor core kernels do not take: float32, page scales, any head dim.
//
// One block 16 rows of one head; keys in tiles of 32, folded in order into a running maximum, sum
// and output, all in shared memory and float32. Eight threads share a row.
#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/attention/attention_cuda.cuh"

namespace mm01::cuda {
namespace {

constexpr int kRows = 16, kKeys = 32, kRowThreads = 8;
constexpr int kThreads = kRows * kRowThreads;
constexpr int kPage = static_cast<int>(kKvPage);
constexpr unsigned kAll = 0xffffffffu;

struct Params {
  Heads q, k, v, out;  // pages: a page is a row, its kv heads are heads
  const float *k_scale, *v_scale;
  int64_t scale_row;
  float* lse;
  int64_t lse_row;
  Sequences sequences;
  int group, dim;
  float scale;
};

// Keys or values first .. first + 31, zero from `length` on: what is there may be anything.
__device__ __forceinline__ void LoadKeys(const Params& p, const Heads& pages, const float* scales,
                                         int seq, int kv_head, int first, int length, float* to) {
  const int32_t* table = p.sequences.block_table + seq * p.sequences.table_stride;
  for (int i = threadIdx.x; i < kKeys * p.dim; i += kThreads) {
    const int key = i / p.dim, column = i % p.dim, at = first + key;
    float x = 0.0f;
    if (at < length) {
      const int64_t page = table[at / kPage];
      x = Load(pages.data, pages.is_bf16,
               page * pages.row + kv_head * pages.head + at % kPage * p.dim + column);
      if (scales) x *= scales[page * p.scale_row + kv_head];
    }
    to[key * (p.dim + 1) + column] = x;
  }
}

__device__ __forceinline__ float RowMax(float x) {
#pragma unroll
  for (int step = 1; step < kRowThreads; step *= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}
__device__ __forceinline__ float RowSum(float x) {
#pragma unroll
  for (int step = 1; step < kRowThreads; step *= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// grid (tiles of rows, H, N)
__global__ void __launch_bounds__(kThreads) Plain(const __grid_constant__ Params p) {
  const int seq = blockIdx.z, head = blockIdx.y, kv_head = head / p.group;
  const Sequence sequence = p.sequences.Get(seq);
  const int first = blockIdx.x * kRows;
  if (first >= sequence.rows) return;

  extern __shared__ float memory[];
  float* q = memory;                  // [16][K]
  float* out = q + kRows * p.dim;     // [16][K]
  float* keys = out + kRows * p.dim;  // [32][K + 1], then the values
  __shared__ float weights[kRows][kKeys];
  const int row = threadIdx.x / kRowThreads, part = threadIdx.x % kRowThreads;
  const bool is_there = first + row < sequence.rows;
  const int64_t at = sequence.row + first + row;
  for (int i = part; i < p.dim; i += kRowThreads) {
    q[row * p.dim + i] =
        is_there ? Load(p.q.data, p.q.is_bf16, at * p.q.row + head * p.q.head + i) * p.scale : 0.0f;
    out[row * p.dim + i] = 0.0f;
  }

  const int visible = sequence.Visible(first + row);
  const int most = sequence.Visible(min(first + kRows, sequence.rows) - 1);
  float top = kNoKey, sum = 0.0f;
  for (int begin = 0; begin < most; begin += kKeys) {
    __syncthreads();
    LoadKeys(p, p.k, p.k_scale, seq, kv_head, begin, sequence.length, keys);
    __syncthreads();
    float score[kKeys / kRowThreads] = {};
    for (int i = 0; i < p.dim; ++i) {
      const float x = q[row * p.dim + i];
#pragma unroll
      for (int j = 0; j < kKeys / kRowThreads; ++j) {
        score[j] = __fmaf_rn(x, keys[(j * kRowThreads + part) * (p.dim + 1) + i], score[j]);
      }
    }
    float best = kNoKey;
#pragma unroll
    for (int j = 0; j < kKeys / kRowThreads; ++j) {
      if (begin + j * kRowThreads + part >= visible) score[j] = kNoKey;
      best = fmaxf(best, score[j]);
    }
    const float now = fmaxf(top, RowMax(best)), base = now == kNoKey ? 0.0f : now;
    const float factor = expf(top - base);
    float added = 0.0f;
#pragma unroll
    for (int j = 0; j < kKeys / kRowThreads; ++j) {
      const float weight = expf(score[j] - base);
      weights[row][j * kRowThreads + part] = weight;
      added += weight;
    }
    top = now;
    sum = __fmaf_rn(sum, factor, RowSum(added));
    __syncthreads();
    LoadKeys(p, p.v, p.v_scale, seq, kv_head, begin, sequence.length, keys);
    __syncthreads();
    for (int i = part; i < p.dim; i += kRowThreads) {
      float x = 0.0f;
#pragma unroll
      for (int j = 0; j < kKeys; ++j) x = __fmaf_rn(weights[row][j], keys[j * (p.dim + 1) + i], x);
      out[row * p.dim + i] = __fmaf_rn(out[row * p.dim + i], factor, x);
    }
  }

  if (!is_there) return;
  for (int i = part; i < p.dim; i += kRowThreads) {
    Store(p.out.data, p.out.is_bf16, at * p.out.row + head * p.out.head + i,
          sum > 0.0f ? out[row * p.dim + i] / sum : 0.0f);
  }
  if (p.lse && part == 0) {
    p.lse[at * p.lse_row + head] = sum > 0.0f ? top + logf(sum) : kNoKey;
  }
}

Heads Pages(const Tensor& t) {
  return {t.data, t.stride[0], t.stride[1], t.dtype == DType::kBF16};
}

}  // namespace

void PlainAttention(Queue& queue, const AttentionProblem& a) {
  Params p{.q = a.q,
           .k = Pages(a.kv.k),
           .v = Pages(a.kv.v),
           .out = a.out,
           .lse = a.lse,
           .lse_row = a.lse_row,
           .sequences = a.sequences,
           .group = a.group,
           .dim = a.dim,
           .scale = a.scale()};
  if (!a.kv.k_scale.empty()) {
    p.k_scale = a.kv.k_scale.As<const float, 2>().data;
    p.v_scale = a.kv.v_scale.As<const float, 2>().data;
    p.scale_row = a.kv.k_scale.stride[0];
    Check(a.kv.v_scale.stride[0] == p.scale_row, "Attention: k_scale and v_scale differ");
  }
  const int bytes = (2 * kRows * a.dim + kKeys * (a.dim + 1)) * static_cast<int>(sizeof(float));
  static const bool raised = [] {
    constexpr int kMost = 220 * 1024;
    CheckCuda(cudaFuncSetAttribute(Plain, cudaFuncAttributeMaxDynamicSharedMemorySize, kMost));
    return true;
  }();
  (void)raised;
  const int64_t rows = a.max_rows < a.num_rows ? a.max_rows : a.num_rows;
  const dim3 grid(static_cast<unsigned>((rows + kRows - 1) / kRows), static_cast<unsigned>(a.heads),
                  static_cast<unsigned>(a.sequences.count));
  Plain<<<grid, kThreads, static_cast<size_t>(bytes), queue.stream()>>>(p);
  CheckLaunch();
}

}  // namespace mm01::cuda
