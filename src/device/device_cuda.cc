#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <new>
#include <string>
#include <vector>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "device/cuda_memory.h"
#include "device/device.h"
#include "device/tensor_map.cuh"

namespace mm01 {

Result<CudaInfo> FindCuda() {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    const std::string reason = error == cudaSuccess ? "none found" : cudaGetErrorString(error);
    return Status::Unsupported("no GPU to use: " + reason);
  }
  cudaDeviceProp p;
  cuda::CheckCuda(cudaGetDeviceProperties(&p, 0));
  if (p.major != 9 || p.minor != 0) {
    return Status::Unsupported(std::string("the GPU is ") + p.name + " of compute capability " +
                               std::to_string(p.major) + "." + std::to_string(p.minor) +
                               "; the kernels are made for 9.0 (H100, H200)");
  }
  size_t free = 0, total = 0;
  cuda::CheckCuda(cudaMemGetInfo(&free, &total));
  return CudaInfo{.name = p.name,
                  .multiprocessors = p.multiProcessorCount,
                  .memory_bytes = static_cast<int64_t>(total),
                  .free_bytes = static_cast<int64_t>(free),
                  .l2_bytes = p.l2CacheSize};
}

namespace cuda {

void CheckCuda(cudaError_t error, std::source_location where) {
  if (error == cudaSuccess) return;
  throw DeviceError(std::string(where.file_name()) + ":" + std::to_string(where.line()) + ": " +
                    cudaGetErrorString(error));
}

int Multiprocessors() {
  static const int count = [] {
    int n = 0;
    CheckCuda(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 0));
    return n;
  }();
  return count;
}

std::byte* Allocate(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // so that the next launch does not report it again
    throw std::bad_alloc();
  }
  CheckCuda(error);
  CheckCuda(cudaMemset(memory, 0, static_cast<size_t>(bytes)));
  CheckCuda(cudaDeviceSynchronize());  // queues do not wait for the default stream
  return static_cast<std::byte*>(memory);
}

void Free(std::byte* memory) noexcept {
  cudaFree(memory);
}

CUstream_st* MakeStream() {
  cudaStream_t stream = nullptr;
  CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return stream;
}

void FreeStream(CUstream_st* stream) noexcept {
  FreeStaging(stream);
  cudaStreamDestroy(stream);
}

void WaitFor(CUstream_st* stream) {
  CheckCuda(cudaStreamSynchronize(stream));
}

void Copy(void* to, const void* from, int64_t bytes, CUstream_st* stream) {
  CheckCuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream));
}

CUgraphExec_st* Record(CUstream_st* stream, const std::function<void()>& work) {
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  CheckCuda(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  CheckCuda(error);
  return executable;
}

void Replay(CUgraphExec_st* graph, CUstream_st* stream) {
  CheckCuda(cudaGraphLaunch(graph, stream));
}

void FreeGraph(CUgraphExec_st* graph) noexcept {
  if (graph) cudaGraphExecDestroy(graph);
}

CUtensorMap MakeTensorMap(const void* base, const TensorMapShape& shape) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    CheckCuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                               cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) {
      throw DeviceError("the driver has no cuTensorMapEncodeTiled");
    }
    return reinterpret_cast<Encode>(function);
  }();
  const size_t rank = shape.dims.size();
  Check(rank >= 1 && rank <= 5 && shape.strides.size() + 1 == rank && shape.box.size() == rank,
        "a tensor map has up to five dims, a stride for each after the first and a box");
  cuuint64_t dims[5], strides[5] = {};
  cuuint32_t box[5], element[5] = {1, 1, 1, 1, 1};
  std::copy(shape.dims.begin(), shape.dims.end(), dims);
  std::copy(shape.strides.begin(), shape.strides.end(), strides);
  std::copy(shape.box.begin(), shape.box.end(), box);
  CUtensorMap map;
  const CUresult result =
      encode(&map, shape.type, static_cast<cuuint32_t>(rank), const_cast<void*>(base), dims,
             strides, box, element, CU_TENSOR_MAP_INTERLEAVE_NONE, shape.swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  Check(result == CUDA_SUCCESS, "the hardware takes no tensor map of this shape");
  return map;
}

}  // namespace cuda
}  // namespace mm01
