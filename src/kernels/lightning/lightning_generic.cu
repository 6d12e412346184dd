// Lightning over blocks of 64 tokens without tensor cores: float32, and head dims that the Hopper
// kernel does not take.
//
// A CTA does 16 columns of V of a (sequence, head), block after block, with S [K, 16] in shared
// memory. K goes by in chunks of 64: each is read once for the scores, for q S and, after them, for
// the new S. Scores are worked out by every slice of a head anew.
#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/lightning/lightning_kernels.cuh"

namespace mm01::cuda {
namespace {

constexpr int kB = kLightningBlock;
constexpr int kSlice = 16;  // columns of V in a CTA
constexpr int kChunk = 64;  // of K
constexpr int kThreads = 256;
constexpr int kRow = kChunk + 4;  // floats a row: reads of 16 bytes by 8 rows meet all banks

struct Shared {
  float4 q[kB][kRow / 4];
  float4 k[kB][kRow / 4];
  float4 scores[kB][kRow / 4];
  float4 v[kB][kSlice / 4];
  float4 v_decay[kB][kSlice / 4];  // times exp(-slope (B - 1 - c))
  float decay[kB + 1];             // exp(-slope n)
  float4 s[];                      // [K][kSlice / 4]
};

__device__ __forceinline__ void Add(float4& sum, float x, const float4& y) {
  sum = {fmaf(x, y.x, sum.x), fmaf(x, y.y, sum.y), fmaf(x, y.z, sum.z), fmaf(x, y.w, sum.w)};
}
__device__ __forceinline__ float Dot(float sum, const float4& x, const float4& y) {
  return fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
}
__device__ __forceinline__ float4 Times(const float4& x, float y) {
  return {x.x * y, x.y * y, x.z * y, x.w * y};
}

// One block of a (sequence, head): where its rows lie.
template <typename T>
struct Block {
  const T *q, *k, *v;        // of place 0; strides of the call
  const T *kept_k, *kept_v;  // in the slot; rows of `dim`
  int64_t row_stride;
  int dim, begin, end;  // places begin .. end - 1 are in the call, those before in the slot

  __device__ float4 Row(const T* fresh, const T* kept, int c, int column) const {
    if (c >= end) return {0, 0, 0, 0};
    const auto x = c < begin ? Load<4>(kept + c * static_cast<int64_t>(dim) + column)
                             : Load<4>(fresh + c * row_stride + column);
    return {x[0], x[1], x[2], x[3]};
  }
  __device__ float4 Q(int c, int column) const {
    if (c < begin) return {0, 0, 0, 0};
    return Row(q, q, c, column);
  }
  __device__ float4 K(int c, int column) const { return Row(k, kept_k, c, column); }
  __device__ float4 V(int c, int column) const { return Row(v, kept_v, c, column); }
};

// Scores of thread (ty, tx): rows 4 ty .. + 3, columns tx + 16 j. Output and S: row t / 4, columns
// 4 (t % 4) .. + 3 of the slice.
template <typename T>
__device__ float4 OneBlock(Shared& shared, const Block<T>& block, int first_column, float forget) {
  const int thread = threadIdx.x, tx = thread % 16, ty = thread / 16;
  const int row = thread / 4, quad = thread % 4;
  const float4 v = block.V(row, first_column + quad * 4);
  shared.v[row][quad] = v;
  shared.v_decay[row][quad] = Times(v, shared.decay[kB - 1 - row]);

  float x[4][4] = {};
  float4 o = {0, 0, 0, 0};
  for (int chunk = 0; chunk < block.dim; chunk += kChunk) {
    const int width = min(kChunk, block.dim - chunk) / 4;
    for (int i = thread; i < kB * kChunk / 4; i += kThreads) {
      const int c = i / (kChunk / 4), j = i % (kChunk / 4);
      if (j >= width) continue;
      shared.q[c][j] = block.Q(c, chunk + j * 4);
      shared.k[c][j] = block.K(c, chunk + j * 4);
    }
    __syncthreads();
    for (int j = 0; j < width; ++j) {
      float4 q[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) q[r] = shared.q[ty * 4 + r][j];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float4 k = shared.k[tx + c * 16][j];
#pragma unroll
        for (int r = 0; r < 4; ++r) x[r][c] = Dot(x[r][c], q[r], k);
      }
    }
    for (int j = 0; j < width; ++j) {
      const float4 q = shared.q[row][j];
      const float4* s = shared.s + (chunk + j * 4) * (kSlice / 4) + quad;
      Add(o, q.x, s[0]);
      Add(o, q.y, s[kSlice / 4]);
      Add(o, q.z, s[2 * (kSlice / 4)]);
      Add(o, q.w, s[3 * (kSlice / 4)]);
    }
    __syncthreads();
    if (block.end == kB && row < width * 4) {
      float4& s = shared.s[(chunk + row) * (kSlice / 4) + quad];
      float4 sum = {fmaf(-forget, s.x, s.x), fmaf(-forget, s.y, s.y), fmaf(-forget, s.z, s.z),
                    fmaf(-forget, s.w, s.w)};
#pragma unroll 8
      for (int c = 0; c < kB; ++c) {
        Add(sum, reinterpret_cast<const float*>(shared.k[c])[row], shared.v_decay[c][quad]);
      }
      s = sum;
    }
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int r = ty * 4 + i, c = tx + j * 16;
      reinterpret_cast<float*>(shared.scores[r])[c] = c <= r ? x[i][j] * shared.decay[r - c] : 0.0f;
    }
  }
  __syncthreads();
  o = Times(o, shared.decay[row + 1]);
#pragma unroll 4
  for (int j = 0; j < kB / 4; ++j) {
    const float4 p = shared.scores[row][j];
    Add(o, p.x, shared.v[j * 4][quad]);
    Add(o, p.y, shared.v[j * 4 + 1][quad]);
    Add(o, p.z, shared.v[j * 4 + 2][quad]);
    Add(o, p.w, shared.v[j * 4 + 3][quad]);
  }
  __syncthreads();
  return o;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) Generic(const __grid_constant__ LightningParams p) {
  extern __shared__ float4 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int slices = p.dim / kSlice, thread = threadIdx.x, row = thread / 4, quad = thread % 4;
  const int unit = static_cast<int>(blockIdx.x) / slices, head = unit % p.heads;
  const int first_column = static_cast<int>(blockIdx.x) % slices * kSlice;
  const Sequence sequence = SequenceAt(p, unit / p.heads);
  if (sequence.total == 0) return;

  const float slope = p.slope[head], forget = BlockForget(slope);
  if (thread <= kB) shared.decay[thread] = DecayPower(slope, thread);
  const int64_t kept = static_cast<int64_t>(sequence.slot) * p.heads + head;
  float* const state = p.s + kept * p.dim * p.dim + first_column + quad * 4;
  for (int i = row; i < p.dim; i += kB) {
    shared.s[i * (kSlice / 4) + quad] =
        sequence.fresh ? float4{0, 0, 0, 0}
                       : *reinterpret_cast<const float4*>(state + static_cast<int64_t>(i) * p.dim);
  }
  __syncthreads();

  const int64_t num_blocks = sequence.num_blocks(), num_complete = sequence.num_complete();
  for (int64_t b = 0; b < num_blocks; ++b) {
    const int64_t first_row = sequence.first_row + b * kB;
    const int64_t at = first_row * p.row_stride + head * p.head_stride;
    const Block<T> block{
        .q = static_cast<const T*>(p.q) + at,
        .k = static_cast<const T*>(p.k) + at,
        .v = static_cast<const T*>(p.v) + at,
        .kept_k = static_cast<const T*>(p.k_rows) + kept * kB * p.dim,
        .kept_v = static_cast<const T*>(p.v_rows) + kept * kB * p.dim,
        .row_stride = p.row_stride,
        .dim = p.dim,
        .begin = b == 0 ? sequence.begin : 0,
        .end = static_cast<int>(min(static_cast<int64_t>(kB), sequence.total - b * kB))};
    const float4 o = OneBlock(shared, block, first_column, forget);
    if (row >= block.begin && row < block.end) {
      T* out = static_cast<T*>(p.out) + (first_row + row) * p.out_row_stride +
               head * p.out_head_stride + first_column + quad * 4;
      out[0] = Narrow<T>(o.x);
      out[1] = Narrow<T>(o.y);
      out[2] = Narrow<T>(o.z);
      out[3] = Narrow<T>(o.w);
    }
  }
  if (num_complete == 0) return;
  for (int i = row; i < p.dim; i += kB) {
    *reinterpret_cast<float4*>(state + static_cast<int64_t>(i) * p.dim) =
        shared.s[i * (kSlice / 4) + quad];
  }
}

template <typename T>
void Launch(Queue& queue, const LightningParams& p) {
  const int bytes = static_cast<int>(sizeof(Shared)) + p.dim * kSlice * 4;
  Check(bytes <= 227 * 1024, "Lightning on a GPU: the head dim is too large");
  CheckCuda(
      cudaFuncSetAttribute(Generic<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
  const unsigned ctas = static_cast<unsigned>(p.num_seqs) * static_cast<unsigned>(p.heads) *
                        static_cast<unsigned>(p.dim / kSlice);
  Generic<T><<<ctas, kThreads, static_cast<size_t>(bytes), queue.stream()>>>(p);
  CheckLaunch();
}

}  // namespace

void LaunchGeneric(Queue& queue, DType dtype, const LightningParams& p) {
  dtype == DType::kBF16 ? Launch<__nv_bfloat16>(queue, p) : Launch<float>(queue, p);
}

}  // namespace mm01::cuda
