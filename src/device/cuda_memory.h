// What buffers and queues ask of the CUDA runtime. Failures are DeviceError, but for memory that
// the device does not have: std::bad_alloc.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace mm01::cuda {

std::byte* Allocate(int64_t bytes);  // zeroed
void Free(std::byte* memory) noexcept;

CUstream_st* MakeStream();
void FreeStream(CUstream_st* stream) noexcept;
void WaitFor(CUstream_st* stream);

// Between any two memories, in the order of the stream.
void Copy(void* to, const void* from, int64_t bytes, CUstream_st* stream);

}  // namespace mm01::cuda
