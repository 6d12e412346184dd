// SiLU's gradient at the end of a sweep of lightning_backward_hopper.cu: one warpgroup works out
// the slopes, the other multiplies what it is about to store by them.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/elements.cuh"
#include "kernels/lightning/lightning_backward_sweep.cuh"
#include "kernels/lightning/lightning_fragments.cuh"

namespace mm01::cuda {

// What u of a block is the gradient of SiLU of, a CTA's half: four pieces of eight numbers a thread
// of a warpgroup, on their way from memory while it does other things.
struct RowsBeforeSilu {
  static constexpr int kPieces = 4;
  uint4 piece[kPieces] = {};

  __device__ static int Row(int i) {
    return static_cast<int>(threadIdx.x) % kWarpgroup / 8 + i * (kB / kPieces);
  }
  __device__ static int Chunk() { return static_cast<int>(threadIdx.x) % 8; }

  // `rows` rows from `first_row` of the call on; zeros for those behind them.
  __device__ void Fetch(const SweepParams& p, const SweepItem& item, int first_row, int rows,
                        int rank) {
    const SweepTensor& t = p.tensor[item.sweep.pre];
    const auto* from = static_cast<const bf16*>(t.data) + first_row * t.row_stride +
                       item.head * t.head_stride + rank * kHalf + Chunk() * 8;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int row = Row(i);
      if (row < rows) piece[i] = *reinterpret_cast<const uint4*>(from + row * t.row_stride);
    }
  }

  // SiLU' of them in a tile [B][64] like that of u, as half: off by 2^-12 of itself at most, or by
  // 2^-25 where it is less than 2^-14.
  __device__ void StoreSlopes(__half* tile) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      float x[8];
      Load8(reinterpret_cast<const bf16*>(&piece[i]), x);
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const __half2 pair = __floats2half2_rn(SiluSlope(x[2 * j]), SiluSlope(x[2 * j + 1]));
        pairs[j] = *reinterpret_cast<const uint32_t*>(&pair);
      }
      *reinterpret_cast<uint4*>(reinterpret_cast<char*>(tile) + Swizzle128(Row(i), Chunk() * 16)) =
          make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
};

// u, as StoreFragments takes it, times the slopes of a tile.
__device__ __forceinline__ void MultiplyBySlopes(float (&u)[32], const __half* tile) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t pairs[4];
    LoadMatrixTransposed(FragmentRow(tile, i), pairs[0], pairs[1], pairs[2], pairs[3]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 slope = __half22float2(*reinterpret_cast<const __half2*>(&pairs[j]));
      u[8 * i + 2 * j] *= slope.x;
      u[8 * i + 2 * j + 1] *= slope.y;
    }
  }
}

}  // namespace mm01::cuda
