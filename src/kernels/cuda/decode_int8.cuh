// int8 weights in registers as pairs of bf16.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace mm01::cuda {

// Bytes 2 kPair and 2 kPair + 1 of `q`, signed: exact. With u the lower seven bits, 128 + u and, of
// the sign, 128 or 256 are bf16 numbers that differ in the byte alone.
template <int kPair>
__device__ __forceinline__ uint32_t DecodeInt8(uint32_t q) {
  const uint32_t halves = __byte_perm(q, 0, kPair == 0 ? 0x4140 : 0x4342);
  const uint32_t magnitude = (halves & 0x007f007fu) | 0x43004300u;
  const uint32_t offset = (halves & 0x00800080u) | 0x43004300u;
  const __nv_bfloat162 value = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&magnitude),
                                       *reinterpret_cast<const __nv_bfloat162*>(&offset));
  return *reinterpret_cast<const uint32_t*>(&value);
}

// The same, each times the bf16 in its half of `scale`, rounded once.
template <int kPair>
__device__ __forceinline__ uint32_t ScaleInt8(uint32_t q, uint32_t scale) {
  const uint32_t pair = DecodeInt8<kPair>(q);
  const __nv_bfloat162 value = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&pair),
                                       *reinterpret_cast<const __nv_bfloat162*>(&scale));
  return *reinterpret_cast<const uint32_t*>(&value);
}

}  // namespace mm01::cuda
