// The pieces of the kernels for bf16 and head dim 128 (lightning_prefill.cu and
// lightning_backward_hopper.cu): what a warpgroup's threads hold in registers, S^T, O^T and V^T as
// wgmma wants them, the products between them, and the ring of loads.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/lightning/lightning_kernels.cuh"

namespace mm01::cuda {

constexpr int kB = kLightningBlock;
constexpr int kDim = 128;
constexpr int kHalf = 64;       // columns of V in a CTA
constexpr int kTile = kB * 64;  // elements of a tile [B][64], 8 KB
constexpr uint32_t kTileBytes = kTile * sizeof(__nv_bfloat16);
constexpr int kWarpgroup = 128;
constexpr int kStages = 4;  // blocks in flight or in use

// Powers of the decay of the places 2 p, 2 p + 1 of each 8, for the threads with p = lane % 4. The
// fifth float4 keeps the four rows in different banks.
using PairDecays = float4[4][5];

// The 16 columns from 16 i on of a tile whose columns are summed over, and the 16 rows from 16 i on
// of one whose rows are.
__device__ __forceinline__ uint64_t Columns(uint64_t tile, int i) {
  return tile + i * (16 * sizeof(__nv_bfloat16) >> 4);
}
__device__ __forceinline__ uint64_t Rows(uint64_t tile, int i) {
  return tile + i * (16 * 64 * sizeof(__nv_bfloat16) >> 4);
}

// Two floats as the sum of two bf16 each.
struct Split {
  uint32_t high, low;
};
__device__ __forceinline__ Split SplitPair(float x, float y) {
  const uint32_t high = PackBf16(x, y);
  const float x_high = __uint_as_float(high << 16), y_high = __uint_as_float(high & 0xffff0000u);
  return {high, PackBf16(x - x_high, y - y_high)};
}

// S^T as wgmma's accumulators hold it, a half of K each: of rows v = 16 warp + lane / 4 and v + 8,
// columns k = 8 j + 2 (lane % 4) and the next.
struct State {
  float half[2][32];
};

// This thread's first element of it in the slot, and where element i of a half is from there.
__device__ __forceinline__ float* StateOf(const LightningParams& p, const Sequence& sequence,
                                          int head, int rank) {
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
  return p.s + (static_cast<int64_t>(sequence.slot) * p.heads + head) * kDim * kDim +
         lane % 4 * 2 * kDim + rank * kHalf + warp * 16 + lane / 4;
}
__device__ __forceinline__ constexpr int StateOffset(int i) {
  return (i / 4 * 8 + i % 2) * kDim + i / 2 % 2 * 8;
}
__device__ __forceinline__ void LoadHalf(float (&s)[32], const float* kept, bool fresh) {
#pragma unroll
  for (int i = 0; i < 32; ++i) s[i] = fresh ? 0.0f : kept[StateOffset(i)];
}
__device__ __forceinline__ void StoreHalf(float* kept, const float (&s)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) kept[StateOffset(i)] = s[i];
}

// wgmma's A of 64 of the columns that are summed over, as the sum of two.
struct Terms {
  uint32_t high[4][4], low[4][4];

  __device__ __forceinline__ explicit Terms(const float (&x)[32]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const Split split = SplitPair(x[2 * i], x[2 * i + 1]);
      high[i / 4][i % 4] = split.high;
      low[i / 4][i % 4] = split.low;
    }
  }
  // Of V^T with each token's column times its decay.
  __device__ __forceinline__ Terms(const uint32_t (&v)[4][4], const float4 (&decay)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float first = j < 2 ? decay[i].x : decay[i].z;
        const float second = j < 2 ? decay[i].y : decay[i].w;
        const Split split = SplitPair(__uint_as_float(v[i][j] << 16) * first,
                                      __uint_as_float(v[i][j] & 0xffff0000u) * second);
        high[i][j] = split.high;
        low[i][j] = split.low;
      }
    }
  }
};

__device__ __forceinline__ void LoadDecays(const PairDecays& decays, float4 (&decay)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) decay[i] = decays[threadIdx.x % 4][i];
}

// o times its columns' decays.
__device__ __forceinline__ void Scale(float (&o)[32], const float4 (&decay)[4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float4 pairs = decay[i / 2];
    const float even = i % 2 ? pairs.z : pairs.x, odd = i % 2 ? pairs.w : pairs.y;
    o[4 * i] *= even;
    o[4 * i + 1] *= odd;
    o[4 * i + 2] *= even;
    o[4 * i + 3] *= odd;
  }
}

// x (+)= a tile, where the tile's rows (kRows) or columns are summed over.
template <bool kRows>
__device__ __forceinline__ void Multiply(float (&x)[32], const Terms& a, const void* tile,
                                         bool accumulate) {
  const uint64_t b = WgmmaDescriptor(tile);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint64_t part = kRows ? Rows(b, i) : Columns(b, i);
    WgmmaRs<kRows>(x, a.high[i], part, accumulate || i > 0);
    WgmmaRs<kRows>(x, a.low[i], part, 1);
  }
  WgmmaCommit();
}

// o += V^T P^T
__device__ __forceinline__ void AddScores(float (&o)[32], const uint32_t (&v)[4][4],
                                          const __nv_bfloat16 (&scores)[2][kTile]) {
  const uint64_t high = WgmmaDescriptor(scores[0]), low = high + (kTileBytes >> 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    WgmmaRs<0>(o, v[i], Columns(high, i), 1);
    WgmmaRs<0>(o, v[i], Columns(low, i), 1);
  }
  WgmmaCommit();
}

// What a block adds is summed from zero and only then added to S: the tensor cores' sums round
// towards zero, which would add up in S over as many blocks as a slow head remembers.
__device__ __forceinline__ void Advance(float (&s)[32], float forget, const float (&added)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) s[i] = fmaf(-forget, s[i], s[i]) + added[i];
}

// Where this thread's row of V^T's fragments [64 v, 64 tokens] is in a tile of V [64 tokens, 64]:
// tokens 0-7 and columns 0-7, columns 8-15, then tokens 8-15. O's tile is written the same way.
__device__ __forceinline__ uint32_t FragmentRow(const void* tile, int i) {
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
  return SharedAddress(tile) +
         Swizzle128(i * 16 + lane % 8 + lane / 16 * 8, warp * 32 + lane / 8 % 2 * 16);
}
__device__ __forceinline__ void LoadFragments(uint32_t (&v)[4][4], const __nv_bfloat16* tile) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    LoadMatrixTransposed(FragmentRow(tile, i), v[i][0], v[i][1], v[i][2], v[i][3]);
  }
}
__device__ __forceinline__ void StoreFragments(__nv_bfloat16* tile, const float (&o)[32]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    StoreMatrixTransposed(FragmentRow(tile, i), PackBf16(o[8 * i], o[8 * i + 1]),
                          PackBf16(o[8 * i + 2], o[8 * i + 3]),
                          PackBf16(o[8 * i + 4], o[8 * i + 5]),
                          PackBf16(o[8 * i + 6], o[8 * i + 7]));
  }
}

// ---- scores, by a warpgroup: P [64 rows, 64 rows up to each]

// The decay of each of this thread's scores, and zero where column c comes after row r: in memory,
// or in a sweep that goes back, before it. powers[n]: exp(-slope n).
__device__ __forceinline__ void LoadScoreDecays(float (&decay)[32], const float* powers,
                                                bool back) {
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int r = warp * 16 + lane / 4 + i / 2 % 2 * 8, c = i / 4 * 8 + lane % 4 * 2 + i % 2;
    const int ago = back ? c - r : r - c;
    decay[i] = ago >= 0 ? powers[ago] : 0.0f;
  }
}

// x = the products of rows, of two halves of K each.
__device__ __forceinline__ void MultiplyScores(float (&x)[32], const __nv_bfloat16 (&q)[2][kTile],
                                               const __nv_bfloat16 (&k)[2][kTile]) {
  const uint64_t a = WgmmaDescriptor(q), b = WgmmaDescriptor(k);
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const uint64_t half = i / 4 * (kTileBytes >> 4);
    WgmmaSs<0, 0>(x, Columns(a + half, i % 4), Columns(b + half, i % 4), i > 0);
  }
  WgmmaCommit();
}

// x * decay, as high and low terms.
__device__ __forceinline__ void StoreScores(__nv_bfloat16 (&tiles)[2][kTile], const float (&x)[32],
                                            const float (&decay)[32]) {
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
  // Where stmatrix puts this lane's row of the first 16 columns.
  const int row = warp * 16 + lane % 16, byte = lane / 16 * 16;
  const uint32_t high_tile = SharedAddress(tiles[0]);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Split s[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = i * 8 + j * 2;
      s[j] = SplitPair(x[at] * decay[at], x[at + 1] * decay[at + 1]);
    }
    const uint32_t to = high_tile + Swizzle128(row, byte + i * 32);
    StoreMatrix(to, s[0].high, s[1].high, s[2].high, s[3].high);
    StoreMatrix(to + kTileBytes, s[0].low, s[1].low, s[2].low, s[3].low);
  }
}

// ---- loads

using Ring = StageRing<kStages>;

// This warp no longer reads the stage; both CTAs' loads wait for all warps of both. What it read it
// has in registers, so the arrival need not order anything.
__device__ __forceinline__ void ReleaseStage(uint64_t* empty) {
  __syncwarp();
  if (threadIdx.x % 32 < 2) BarrierArriveRemote(empty, threadIdx.x % 32);
}

}  // namespace mm01::cuda
