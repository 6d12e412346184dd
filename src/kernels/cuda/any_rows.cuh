// A matrix whose element type, float32 or bf16, is known at run time: for kernels that wait for
// memory and meet many mixes of types.
#pragma once

#include "kernels/cuda/elements.cuh"
#include "tensor/tensor.h"

namespace mm01::cuda {

// Eight neighbours as they lie in memory. Fetched without a branch that would wait for them, so
// that several fetches are under way at once.
struct Raw8 {
  uint4 first, second;  // second: of float32 only
  bool is_bf16;

  __device__ __forceinline__ void Unpack(float (&x)[8]) const {
    const uint32_t words[8] = {first.x,  first.y,  first.z,  first.w,
                               second.x, second.y, second.z, second.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t pair = words[i / 2];
      const uint32_t half = i % 2 ? pair & 0xffff0000u : pair << 16;
      x[i] = __uint_as_float(is_bf16 ? half : words[i]);
    }
  }
};

struct AnyRows {
  void* data = nullptr;
  int64_t stride = 0;
  bool is_bf16 = false;

  AnyRows() = default;
  explicit AnyRows(const Tensor& t)
      : data(t.data), stride(t.stride[0]), is_bf16(t.dtype == DType::kBF16) {}

  __device__ float Get(int64_t row, int64_t i) const {
    return is_bf16 ? Load(static_cast<const bf16*>(data) + row * stride + i)
                   : static_cast<const float*>(data)[row * stride + i];
  }
  __device__ void Set(int64_t row, int64_t i, float x) const {
    if (is_bf16) {
      Store(static_cast<bf16*>(data) + row * stride + i, x);
    } else {
      static_cast<float*>(data)[row * stride + i] = x;
    }
  }
  // The rest where rows begin at multiples of 16 bytes and i is a multiple of eight.
  __device__ __forceinline__ Raw8 Fetch8(int64_t row, int64_t i) const {
    const auto* at =
        static_cast<const unsigned char*>(data) + ((row * stride + i) << (is_bf16 ? 1 : 2));
    Raw8 raw{*reinterpret_cast<const uint4*>(at), make_uint4(0, 0, 0, 0), is_bf16};
    if (!is_bf16) raw.second = *reinterpret_cast<const uint4*>(at + 16);
    return raw;
  }
  __device__ void Get8(int64_t row, int64_t i, float (&x)[8]) const {
    if (is_bf16) {
      Load8(static_cast<const bf16*>(data) + row * stride + i, x);
    } else {
      Load8(static_cast<const float*>(data) + row * stride + i, x);
    }
  }
  __device__ void Set8(int64_t row, int64_t i, const float (&x)[8]) const {
    if (is_bf16) {
      Store8(static_cast<bf16*>(data) + row * stride + i, x);
    } else {
      Store8(static_cast<float*>(data) + row * stride + i, x);
    }
  }
};

// kWide numbers from column i on: eight, or one where rows are not aligned.
template <int kWide>
__device__ __forceinline__ void Get(const AnyRows& rows, int64_t row, int64_t i,
                                    float (&x)[kWide]) {
  if constexpr (kWide == 8) {
    rows.Fetch8(row, i).Unpack(x);
  } else {
    x[0] = rows.Get(row, i);
  }
}
template <int kWide>
__device__ __forceinline__ void Set(const AnyRows& rows, int64_t row, int64_t i,
                                    const float (&x)[kWide]) {
  if constexpr (kWide == 8) {
    rows.Set8(row, i, x);
  } else {
    rows.Set(row, i, x[0]);
  }
}

}  // namespace mm01::cuda
