// c = a b with few columns, as of a router: a [M, k] bf16, b^T [N, k] float32. A warp takes four
// rows by eight columns at a time, a lane eight neighbours of every 256 along k. The lanes' sums
// are added in halves, each lane keeping half of the sums it had, so that in the end lane 8 i + j
// holds column j of row i.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/elements.cuh"

namespace mm01::cuda {
namespace {

constexpr int kNarrowThreads = 256;
constexpr int kNarrowRows = 4, kNarrowColumns = 8, kNarrowDepth = 256;
static_assert(kNarrowRows * kNarrowColumns == 32);

struct Narrow {
  const bf16* a;
  const float* b;
  float* c;
  int64_t lda, ldb, ldc;
  int64_t m;
  int n, k;
  bool add;

  __device__ int first_column() const { return static_cast<int>(blockIdx.y) * kNarrowColumns; }
  // A row or a column beyond the last is worked out from the last one and not kept.
  __device__ const bf16* Row(int64_t row, int at) const { return a + min(row, m - 1) * lda + at; }
  __device__ const float* Column(int j, int at) const {
    return b + static_cast<int64_t>(min(first_column() + j, n - 1)) * ldb + at;
  }
};

template <int kHalf>
__device__ __forceinline__ void AddHalves(float (&sum)[32]) {
  const bool upper = threadIdx.x & kHalf;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float others = upper ? sum[i] : sum[i + kHalf];
    sum[i] = (upper ? sum[i + kHalf] : sum[i]) + __shfl_xor_sync(~0u, others, kHalf);
  }
  if constexpr (kHalf > 1) AddHalves<kHalf / 2>(sum);
}

__device__ __forceinline__ void FinishNarrow(const Narrow& p, int64_t first_row, float (&sum)[32]) {
  const int lane = threadIdx.x % 32;
  AddHalves<16>(sum);
  const int64_t row = first_row + lane / kNarrowColumns;
  const int column = p.first_column() + lane % kNarrowColumns;
  if (row >= p.m || column >= p.n) return;
  float* const to = p.c + row * p.ldc + column;
  *to = p.add ? *to + sum[0] : sum[0];
}

__global__ void __launch_bounds__(kNarrowThreads, 2) NarrowRows(const __grid_constant__ Narrow p) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kNarrowThreads / 32) + threadIdx.x / 32;
  const int64_t first_row = warp * kNarrowRows;
  if (first_row >= p.m) return;
  float sum[32] = {};
  for (int k = threadIdx.x % 32 * 8; k < p.k; k += kNarrowDepth) {
    float a[kNarrowRows][8];
#pragma unroll
    for (int i = 0; i < kNarrowRows; ++i) Load8(p.Row(first_row + i, k), a[i]);
#pragma unroll
    for (int j = 0; j < kNarrowColumns; ++j) {
      float b[8];
      Load8(p.Column(j, k), b);
#pragma unroll
      for (int i = 0; i < kNarrowRows; ++i) {
#pragma unroll
        for (int at = 0; at < 8; ++at) {
          sum[kNarrowColumns * i + j] = fmaf(a[i][at], b[at], sum[kNarrowColumns * i + j]);
        }
      }
    }
  }
  FinishNarrow(p, first_row, sum);
}

// The same where k is 256 or less: a lane keeps its part of b for all its rows, and asks for the
// next rows before it multiplies these.
constexpr int kShortThreads = 384;

__global__ void __launch_bounds__(kShortThreads, 1)
    NarrowShortRows(const __grid_constant__ Narrow p) {
  const int k = threadIdx.x % 32 * 8;
  const bool is_mine = k < p.k;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kShortThreads / 32) * kNarrowRows;
  int64_t row =
      (static_cast<int64_t>(blockIdx.x) * (kShortThreads / 32) + threadIdx.x / 32) * kNarrowRows;
  float b[kNarrowColumns][8] = {};
  uint4 next[kNarrowRows] = {};
  const auto fetch = [&](int64_t first) {
#pragma unroll
    for (int i = 0; i < kNarrowRows; ++i) {
      next[i] = *reinterpret_cast<const uint4*>(p.Row(first + i, k));
    }
  };
  if (is_mine) {
#pragma unroll
    for (int j = 0; j < kNarrowColumns; ++j) Load8(p.Column(j, k), b[j]);
    fetch(row);
  }
  for (; row < p.m; row += stride) {
    uint4 rows[kNarrowRows];
#pragma unroll
    for (int i = 0; i < kNarrowRows; ++i) rows[i] = next[i];
    if (is_mine) fetch(row + stride);
    float sum[32];
#pragma unroll
    for (int i = 0; i < kNarrowRows; ++i) {
      float a[8];
      Load8(reinterpret_cast<const bf16*>(&rows[i]), a);
#pragma unroll
      for (int j = 0; j < kNarrowColumns; ++j) {
        float s = 0.0f;
#pragma unroll
        for (int at = 0; at < 8; ++at) s = fmaf(a[at], b[j][at], s);
        sum[kNarrowColumns * i + j] = s;
      }
    }
    FinishNarrow(p, row, sum);
  }
}

}  // namespace
}  // namespace mm01::cuda
