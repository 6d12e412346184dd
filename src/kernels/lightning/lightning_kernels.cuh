// What the kernels of Lightning share: their parameters, where a sequence stands on the grid of
// blocks, and powers of the decay.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "device/queue.h"
#include "kernels/lightning/lightning.h"
#include "tensor/dtype.h"

namespace mm01::cuda {

// Letters as in lightning.h; strides in elements, the same for q, k and v.
struct LightningParams {
  const void *q, *k, *v;  // [T, H, K]
  void* out;              // [T, H, V]
  int64_t row_stride, head_stride, out_row_stride, out_head_stride;
  const float* slope;
  const int64_t* cu_seqlens;
  const int64_t* position;
  const int32_t* slot;
  float* s;               // [P, H, K, V]
  void *k_rows, *v_rows;  // [P, H, B, K]
  int64_t rows, num_slots;
  int32_t num_seqs, heads, dim;
  bool settled;
};

// Blocks on the grid, any number of rows. bf16, head dim 128; TMA and wgmma.
void LaunchPrefill(Queue& queue, const LightningParams& p);
// One row, or none, of each sequence. Head dim 64 or 128. Also puts the row in the slot.
void LaunchDecode(Queue& queue, DType dtype, const LightningParams& p);
// As LaunchPrefill, for every type and head dim.
void LaunchGeneric(Queue& queue, DType dtype, const LightningParams& p);

// The rows of a sequence in this call, on the grid.
struct Sequence {
  int64_t first_row;  // in the call, of the first block's place 0: may lie before the sequence
  int64_t total;      // places from there to the last row
  int32_t begin;      // place of the first new row in the first block
  int32_t slot;
  bool fresh;  // the first block is the sequence's first, so S is zero and not in the slot

  __device__ int64_t num_blocks() const { return (total + kLightningBlock - 1) / kLightningBlock; }
  // Blocks that are complete after this call: the last of them gives the new S.
  __device__ int64_t num_complete() const { return total / kLightningBlock; }
};

__device__ __forceinline__ Sequence SequenceAt(const LightningParams& p, int32_t n) {
  const int64_t row = p.cu_seqlens[n], count = p.cu_seqlens[n + 1] - row;
  const int64_t position = p.position[n];
  const auto begin = static_cast<int32_t>(position % kLightningBlock);
  return {.first_row = row - begin,
          .total = count > 0 ? begin + count : 0,
          .begin = begin,
          .slot = p.slot[n],
          .fresh = position < kLightningBlock};
}

// exp(-slope n). The product's rounding is made good: at slope n = 50 it alone costs 2e-6.
__device__ __forceinline__ float DecayPower(float slope, int32_t n) {
  const float product = slope * static_cast<float>(n);
  const float rest = fmaf(slope, static_cast<float>(n), -product);
  const float power = expf(-product);
  return fmaf(-rest, power, power);
}

// 1 - exp(-slope B). S - forget S keeps the bits that exp(-slope B) S loses where the decay is
// close to 1, and they would be lost again at each border.
__device__ __forceinline__ float BlockForget(float slope) {
  return -expm1f(-slope * static_cast<float>(kLightningBlock));
}

__device__ __forceinline__ float Widen(float x) {
  return x;
}
__device__ __forceinline__ float Widen(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <typename T>
__device__ __forceinline__ T Narrow(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else {
    return __float2bfloat16(x);
  }
}

// kCount elements that lie together, aligned to their size or to 16 bytes. Kept as 32-bit words, of
// which bf16 are halves, so that a pair takes one register.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Vector {
  uint32_t word[kCount * sizeof(T) / 4];

  __device__ float operator[](int i) const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return __uint_as_float(word[i]);
    } else {
      return __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
    }
  }
};

template <int kCount, typename T>
__device__ __forceinline__ Vector<T, kCount> Load(const T* x) {
  return *reinterpret_cast<const Vector<T, kCount>*>(x);
}

}  // namespace mm01::cuda
