// A block of lightning attention without tensor cores, in float32, by a CTA that does 16 columns of
// V of a (sequence, head) with S [K, 16] in shared memory: what lightning_generic.cu and
// lightning_backward_generic.cu share.
//
// K goes by in chunks of 64: each is read once for the scores, for q S and, after them, for the new
// S. Scores are worked out by every slice of a head anew.
#pragma once

#include <cstdint>

#include "kernels/lightning/lightning_kernels.cuh"

namespace mm01::cuda {

constexpr int kB = kLightningBlock;
constexpr int kSlice = 16;  // columns of V in a CTA
constexpr int kChunk = 64;  // of K
constexpr int kThreads = 256;
constexpr int kRow = kChunk + 4;  // floats a row: reads of 16 bytes by 8 rows meet all banks

struct BlockShared {
  float4 q[kB][kRow / 4];
  float4 k[kB][kRow / 4];
  float4 scores[kB][kRow / 4];
  float4 v[kB][kSlice / 4];
  float4 v_decay[kB][kSlice / 4];  // as it enters S
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

// Powers of exp(-slope), n being their exponents.
struct BlockDecay {
  int from_state;  // row r reads S with n = r + from_state
  int into_state;  // row c enters S with n = into_state - c
  float forget;    // 1 - what S keeps
  bool advance;    // whether S is wanted after the block
};

// Works through a block by 256 threads, shared.s being the state before it and then, where
// `advance` says so, the one after it. Returns this thread's row t / 4 and columns 4 (t % 4) .. + 3
// of the slice of O. Block has `dim` and gives four elements of a row: Q(c, column), K(c, column)
// and V(c, column), zeros where a row is not to count.
//
// Scores of thread (ty, tx): rows 4 ty .. + 3, columns tx + 16 j.
template <typename Block>
__device__ float4 OneBlock(BlockShared& shared, const Block& block, int first_column,
                           const BlockDecay& decay) {
  const int thread = threadIdx.x, tx = thread % 16, ty = thread / 16;
  const int row = thread / 4, quad = thread % 4;
  const float4 v = block.V(row, first_column + quad * 4);
  shared.v[row][quad] = v;
  shared.v_decay[row][quad] = Times(v, shared.decay[max(0, decay.into_state - row)]);

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
    if (decay.advance && row < width * 4) {
      float4& s = shared.s[(chunk + row) * (kSlice / 4) + quad];
      float4 sum = {fmaf(-decay.forget, s.x, s.x), fmaf(-decay.forget, s.y, s.y),
                    fmaf(-decay.forget, s.z, s.z), fmaf(-decay.forget, s.w, s.w)};
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
  o = Times(o, shared.decay[row + decay.from_state]);
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

}  // namespace mm01::cuda
