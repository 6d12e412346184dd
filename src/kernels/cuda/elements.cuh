// float32 and bf16 in memory, float32 in registers: one element, or eight at a time where rows
// begin at multiples of 16 bytes.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "tensor/tensor.h"

namespace mm01::cuda {

__device__ __forceinline__ float Load(const float* p) {
  return *p;
}
__device__ __forceinline__ float Load(const bf16* p) {
  return __uint_as_float(static_cast<uint32_t>(p->bits) << 16);
}
__device__ __forceinline__ void Store(float* p, float x) {
  *p = x;
}
__device__ __forceinline__ void Store(bf16* p, float x) {
  p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

__device__ __forceinline__ void Load8(const float* p, float (&x)[8]) {
  const float4 a = reinterpret_cast<const float4*>(p)[0];
  const float4 b = reinterpret_cast<const float4*>(p)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
  x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ __forceinline__ void Load8(const bf16* p, float (&x)[8]) {
  const uint4 a = *reinterpret_cast<const uint4*>(p);
  const uint32_t pairs[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(pairs[i] << 16);
    x[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void Store8(float* p, const float (&x)[8]) {
  reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
__device__ __forceinline__ void Store8(bf16* p, const float (&x)[8]) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    pairs[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  *reinterpret_cast<uint4*>(p) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// kWide numbers that lie together: eight, or one where rows are not aligned.
template <int kWide, typename T>
__device__ __forceinline__ void Get(const T* p, float (&x)[kWide]) {
  if constexpr (kWide == 8) {
    Load8(p, x);
  } else {
    x[0] = Load(p);
  }
}
template <int kWide, typename T>
__device__ __forceinline__ void Put(T* p, const float (&x)[kWide]) {
  if constexpr (kWide == 8) {
    Store8(p, x);
  } else {
    Store(p, x[0]);
  }
}

// By the hardware's exponential and reciprocal: off by 2^-21 (1 + |x| / 4) of itself at most. The
// exponential may be infinite, and below 2^-126 all is zero.
__device__ __forceinline__ float Sigmoid(float x) {
  float exponential, quotient;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(exponential) : "f"(-1.44269504f * x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(quotient) : "f"(1.0f + exponential));
  return quotient;
}

// The slope of SiLU(x) = x s, s being Sigmoid(x).
__device__ __forceinline__ float SiluSlope(float x, float s) {
  return s * (1.0f + x * (1.0f - s));
}
__device__ __forceinline__ float SiluSlope(float x) {
  return SiluSlope(x, Sigmoid(x));
}

// Do all rows begin at multiples of 16 bytes?
inline bool HasAlignedRows(const Tensor& t) {
  if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0) return false;
  for (int d = 0; d + 1 < t.rank; ++d) {
    if (t.stride[static_cast<size_t>(d)] * SizeOf(t.dtype) % 16 != 0) return false;
  }
  return true;
}

// Calls f<T>() with the element type of a tensor of activations.
template <typename F>
void WithElement(const Tensor& t, F&& f) {
  Check(t.dtype == DType::kF32 || t.dtype == DType::kBF16, "activations are float32 or bf16");
  if (t.dtype == DType::kF32) {
    f.template operator()<float>();
  } else {
    f.template operator()<bf16>();
  }
}

}  // namespace mm01::cuda
