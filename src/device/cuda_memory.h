// What buffers, queues and graphs ask of the CUDA runtime. Failures are DeviceError, but for memory
// that the device does not have: std::bad_alloc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct CUstream_st;
struct CUgraphExec_st;

namespace mm01::cuda {

std::byte* Allocate(int64_t bytes);  // zeroed
void Free(std::byte* memory) noexcept;

CUstream_st* MakeStream();
void FreeStream(CUstream_st* stream) noexcept;
void WaitFor(CUstream_st* stream);

// Between any two memories, in the order of the stream.
void Copy(void* to, const void* from, int64_t bytes, CUstream_st* stream);

// What `work` puts in the stream, recorded and not run.
CUgraphExec_st* Record(CUstream_st* stream, const std::function<void()>& work);
void Replay(CUgraphExec_st* graph, CUstream_st* stream);
void FreeGraph(CUgraphExec_st* graph) noexcept;

}  // namespace mm01::cuda
