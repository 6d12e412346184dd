// What the tensor core kernels of attention share.
#pragma once

#include <cuda_runtime.h>

#include "device/check_cuda.cuh"
#include "device/tensor_map.cuh"
#include "kernels/attention/attention_cuda.cuh"
#include "kernels/cuda/hopper.cuh"

namespace mm01::cuda {

inline constexpr int kPage = static_cast<int>(kKvPage);
inline constexpr int kPagePart = kPage * 128;  // bytes of a page's 64 columns
inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Over the four threads that hold a row of a product.
__device__ __forceinline__ float RowMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ __forceinline__ float RowSum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// By one lane of a warp, when all have read what the barrier guards.
__device__ __forceinline__ void Release(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(barrier);
}

// The same in all threads of a warp, and known to be: addresses and branches stay uniform.
__device__ __forceinline__ int Uniform(int x) {
  return __shfl_sync(kAllLanes, x, 0);
}

// A descriptor of what stands so many bytes further.
__device__ __forceinline__ uint64_t Further(uint64_t descriptor, uint32_t bytes) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + (bytes >> 4);
  return (descriptor >> 32 << 32) | low;
}

// The block's dynamic shared memory, of SharedBytes<T> bytes.
template <typename T>
__device__ __forceinline__ T& SharedMemory() {
  extern __shared__ unsigned char memory[];
  return *reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory) + 1023) & ~uintptr_t{1023});
}
template <typename T>
inline constexpr int kSharedBytes = sizeof(T) + 1023;

// A page of one kv head, 64 columns at a time; coordinates column, 0, kv head, page.
inline CUtensorMap PageMap(const Tensor& pool, int dim) {
  return MakeTensorMap(pool.data, {.dims = {dim, kPage, pool.dim(1), pool.dim(0)},
                                   .strides = {dim * 2, pool.stride[1] * 2, pool.stride[0] * 2},
                                   .box = {64, kPage, 1, 1}});
}

// Once for each kernel.
template <auto kKernel, int kBytes>
void AllowSharedMemory() {
  static const bool done = [] {
    CheckCuda(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return true;
  }();
  (void)done;
}

}  // namespace mm01::cuda
