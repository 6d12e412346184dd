// Kernels that start before the one ahead of them in their queue has ended (programmatic dependent
// launch): while a small kernel runs, the next one fetches its weights.
//
// Every thread of a kernel that LaunchOverlapped starts calls AwaitEarlierKernels before it reads
// what another kernel may have written and before it writes anything. Ahead of that it may read
// only what no kernel of the queue writes: weights. Kernels launched the ordinary way may stand
// before and after.
//
// A kernel that allows the next one after its own wait, as products (gemm.h) do, is the only one
// that may still run when the next begins: what it does not write may then be read at once, too.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

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

// Asks for memory in L2, also before the wait: L2 is where what other kernels write is seen.
// Address and bytes are multiples of 16.
__device__ __forceinline__ void PrefetchToL2(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from)),
               "r"(bytes)
               : "memory");
}

// `carveout`: the percentage of a multiprocessor's memory that is shared memory, not first-level
// cache. A multiprocessor changes it only when it is empty: kernels that ask for different ones
// do not overlap, whatever they allow.
template <typename... Params, typename... Args>
void LaunchOverlappedAt(Queue& queue, int carveout, void (*kernel)(Params...), dim3 grid,
                        dim3 block, size_t shared_bytes, Args&&... args) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[1].val.sharedMemCarveout = static_cast<unsigned>(carveout);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream();
  config.attrs = attributes;
  config.numAttrs = carveout == cudaSharedmemCarveoutDefault ? 1 : 2;
  CheckCuda(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
}

// Small grids, those of decoding, all ask for as much shared memory as there is, which the kernels
// that stream weights need. Large ones have what the driver thinks best.
template <typename... Params, typename... Args>
void LaunchOverlapped(Queue& queue, void (*kernel)(Params...), dim3 grid, dim3 block,
                      size_t shared_bytes, Args&&... args) {
  const int64_t blocks = int64_t{grid.x} * grid.y * grid.z;
  LaunchOverlappedAt(queue,
                     blocks <= 4 * Multiprocessors() ? cudaSharedmemCarveoutMaxShared
                                                     : cudaSharedmemCarveoutDefault,
                     kernel, grid, block, shared_bytes, std::forward<Args>(args)...);
}

}  // namespace mm01::cuda
