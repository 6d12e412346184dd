// What buffers, queues and graphs ask of the CUDA runtime. Failures are DeviceError, but for memory
// that the device does not have: std::bad_alloc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "base/thread_pool.h"

struct CUstream_st;
struct CUgraphExec_st;

namespace mm01::cuda {

std::byte* Allocate(int64_t bytes);  // zeroed
void Free(std::byte* memory) noexcept;

CUstream_st* MakeStream();
void FreeStream(CUstream_st* stream) noexcept;  // and its staging
void WaitFor(CUstream_st* stream);

// Between any two memories, in the order of the stream.
void Copy(void* to, const void* from, int64_t bytes, CUstream_st* stream);

// The same for pageable memory of the host and kStagedFrom bytes at least: by way of pinned memory,
// which the threads of `pool` fill and empty while the device copies another part of it. The
// runtime does so with one thread, at 5 to 10 GB/s. The stream must not be recorded. The pinned
// memory is the stream's, made at its first copy and freed with it.
constexpr int64_t kStagedFrom = 1 << 20;
void CopyIn(void* device_memory, const void* host, int64_t bytes, CUstream_st* stream,
            ThreadPool& pool);  // `host` may be reused on return
void CopyOut(void* host, const void* device_memory, int64_t bytes, CUstream_st* stream,
             ThreadPool& pool);  // the bytes are there on return
void FreeStaging(CUstream_st* stream) noexcept;

// What `work` puts in the stream, recorded and not run.
CUgraphExec_st* Record(CUstream_st* stream, const std::function<void()>& work);
void Replay(CUgraphExec_st* graph, CUstream_st* stream);
void FreeGraph(CUgraphExec_st* graph) noexcept;

}  // namespace mm01::cuda
