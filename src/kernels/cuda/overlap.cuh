// Kernels that start before the one ahead of them in their queue has ended (programmatic dependent
// launch): while a small kernel runs, the next one fetches its weights.
//
// Every thread of a kernel that LaunchOverlapped starts calls AwaitEarlierKernels before it reads
// what another kernel may have written and before it writes anything. Ahead of that it may read
// only what no kernel of the queue writes: weights. Kernels launched the ordinary way may stand
// before and after.
#pragma once

#include <cuda_runtime.h>

#include "device/check_cuda.cuh"
#include "device/queue.h"

namespace mm01::cuda {

// Until all kernels ahead in the queue have ended and what they wrote can be read.
__device__ __forceinline__ void AwaitEarlierKernels() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// The next kernel may start once every block has called this or ended.
__device__ __forceinline__ void AllowNextKernel() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

template <typename... Params, typename... Args>
void LaunchOverlapped(Queue& queue, void (*kernel)(Params...), dim3 grid, dim3 block,
                      size_t shared_bytes, Args&&... args) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream();
  config.attrs = &overlap;
  config.numAttrs = 1;
  CheckCuda(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
}

}  // namespace mm01::cuda
