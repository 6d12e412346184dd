// Attention in training with float32 arithmetic, any type and head dim. A warp takes a row and head
// and walks the rows that it meets 32 at a time: a lane works the products of one of them, then
// lanes take the dims of the sums. Query heads of a kv head come one after another.
#include "device/check_cuda.cuh"
#include "kernels/attention/attention_backward_cuda.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMostDim = 256;
constexpr unsigned kAll = 0xffffffffu;

// Each lane's dims: lane, lane + 32, ...
struct Sum {
  static constexpr int kEach = kMostDim / 32;
  float x[kEach] = {};

  __device__ void Scale(float by) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) x[j] *= by;
  }
  // += the sum over 32 lanes of the lane's weight times its row of `rows`.
  __device__ void Add(const Heads& rows, int64_t first, int count, int head, float weight,
                      int dim) {
    for (int s = 0; s < count; ++s) {
      const float w = __shfl_sync(kAll, weight, s);
      const int64_t at = (first + s) * rows.row + static_cast<int64_t>(head) * rows.head;
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int i = threadIdx.x % 32 + 32 * j;
        if (i < dim) x[j] = fmaf(w, Load(rows.data, rows.is_bf16, at + i), x[j]);
      }
    }
  }
  __device__ void Write(const Heads& to, int64_t row, int head, float factor, int dim) const {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int i = threadIdx.x % 32 + 32 * j;
      if (i < dim) {
        Store(to.data, to.is_bf16, row * to.row + static_cast<int64_t>(head) * to.head + i,
              x[j] * factor);
      }
    }
  }
};

__device__ float Dot(const Heads& a, int64_t row_a, int head_a, const Heads& b, int64_t row_b,
                     int head_b, int dim) {
  const int64_t x = row_a * a.row + static_cast<int64_t>(head_a) * a.head;
  const int64_t y = row_b * b.row + static_cast<int64_t>(head_b) * b.head;
  float sum = 0.0f;
  for (int i = 0; i < dim; ++i) {
    sum = fmaf(Load(a.data, a.is_bf16, x + i), Load(b.data, b.is_bf16, y + i), sum);
  }
  return sum;
}

// A warp's row and head, and its document.
struct Place {
  int row, head;
  int64_t begin, end;  // rows of the document

  __device__ Place(const AttentionDocuments& a, int64_t item, int heads)
      : row(static_cast<int>(item / heads)), head(static_cast<int>(item % heads)) {
    int low = 0, high = a.documents;  // the last document that begins at the row or before it
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (a.cu_seqlens[middle] <= row) {
        low = middle;
      } else {
        high = middle;
      }
    }
    begin = a.cu_seqlens[low];
    end = a.cu_seqlens[low + 1];
  }
};

__device__ __forceinline__ int64_t Item() {
  return static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
}

__device__ float WarpMax(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}
__device__ float WarpSum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

__global__ void __launch_bounds__(kThreads) Pass(const __grid_constant__ AttentionDocuments a) {
  if (Item() >= static_cast<int64_t>(a.rows) * a.heads) return;
  const Place at(a, Item(), a.heads);
  const int lane = threadIdx.x % 32, kv_head = at.head / a.group;
  float top = kNoKey, total = 0.0f;
  Sum out;
  for (int64_t first = at.begin; first <= at.row; first += 32) {
    const int count = static_cast<int>(min(int64_t{32}, at.row - first + 1));
    float score = kNoKey;
    if (lane < count)
      score = a.scale * Dot(a.q, at.row, at.head, a.k, first + lane, kv_head, a.dim);
    const float now = fmaxf(top, WarpMax(score)), factor = expf(top - now);
    const float weight = expf(score - now);
    top = now;
    total = total * factor + WarpSum(weight);
    out.Scale(factor);
    out.Add(a.v, first, count, kv_head, weight, a.dim);
  }
  out.Write(a.out, at.row, at.head, 1.0f / total, a.dim);
  if (lane == 0) a.lse[static_cast<int64_t>(at.row) * a.heads + at.head] = top + logf(total);
}

// P and D of query row t and key row s; t and s differ by lane.
struct Weights {
  float p, d;

  __device__ Weights(const AttentionDocuments& a, int64_t t, int head, int64_t s) {
    const int kv_head = head / a.group;
    const float score = a.scale * Dot(a.q, t, head, a.k, s, kv_head, a.dim);
    p = expf(score - a.lse[t * a.heads + head]);
    const float dp = Dot(a.d_out, t, head, a.v, s, kv_head, a.dim);
    d = p * (dp - a.delta[static_cast<int64_t>(head) * a.rows + t]);
  }
  __device__ Weights() : p(0.0f), d(0.0f) {}
};

__global__ void __launch_bounds__(kThreads) Queries(const __grid_constant__ AttentionDocuments a) {
  if (Item() >= static_cast<int64_t>(a.rows) * a.heads) return;
  const Place at(a, Item(), a.heads);
  const int lane = threadIdx.x % 32;
  Sum dq;
  for (int64_t first = at.begin; first <= at.row; first += 32) {
    const int count = static_cast<int>(min(int64_t{32}, at.row - first + 1));
    const Weights w = lane < count ? Weights(a, at.row, at.head, first + lane) : Weights();
    dq.Add(a.k, first, count, at.head / a.group, w.d, a.dim);
  }
  dq.Write(a.dq, at.row, at.head, a.scale, a.dim);
}

__global__ void __launch_bounds__(kThreads) Keys(const __grid_constant__ AttentionDocuments a) {
  if (Item() >= static_cast<int64_t>(a.rows) * a.kv_heads) return;
  const Place at(a, Item(), a.kv_heads);
  const int lane = threadIdx.x % 32;
  Sum dk, dv;
  for (int head = at.head * a.group; head < (at.head + 1) * a.group; ++head) {
    for (int64_t first = at.row; first < at.end; first += 32) {
      const int count = static_cast<int>(min(int64_t{32}, at.end - first));
      const Weights w = lane < count ? Weights(a, first + lane, head, at.row) : Weights();
      dk.Add(a.q, first, count, head, w.d, a.dim);
      dv.Add(a.d_out, first, count, head, w.p, a.dim);
    }
  }
  dk.Write(a.dk, at.row, at.head, a.scale, a.dim);
  dv.Write(a.dv, at.row, at.head, 1.0f, a.dim);
}

unsigned Blocks(int64_t warps) {
  return static_cast<unsigned>((warps + kThreads / 32 - 1) / (kThreads / 32));
}

}  // namespace

void AttentionPassGeneric(Queue& queue, const AttentionDocuments& a) {
  Pass<<<Blocks(int64_t{a.rows} * a.heads), kThreads, 0, queue.stream()>>>(a);
  CheckLaunch();
}

void AttentionBackwardGeneric(Queue& queue, const AttentionDocuments& a) {
  Queries<<<Blocks(int64_t{a.rows} * a.heads), kThreads, 0, queue.stream()>>>(a);
  CheckLaunch();
  Keys<<<Blocks(int64_t{a.rows} * a.kv_heads), kThreads, 0, queue.stream()>>>(a);
  CheckLaunch();
}

}  // namespace mm01::cuda
