#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "device/check_cuda.cuh"
#include "device/cuda_memory.h"

namespace mm01::cuda {
namespace {

constexpr int64_t kPart = 2 << 20;
constexpr int64_t kParts = 4;
constexpr int64_t kSlice = 128 << 10;  // of a part, for one thread

void CopyOnHost(std::byte* to, const std::byte* from, int64_t bytes, ThreadPool& pool) {
  pool.ParallelFor((bytes + kSlice - 1) / kSlice, [&](int64_t slice, int) {
    const int64_t at = slice * kSlice;
    std::memcpy(to + at, from + at, static_cast<size_t>(std::min(kSlice, bytes - at)));
  });
}

// A ring of parts of pinned memory. A part may be filled or emptied by the host once its event has
// passed, which follows the device's last copy to or from it.
class Staging {
 public:
  Staging() {
    CheckCuda(cudaHostAlloc(&memory_, kParts * kPart, cudaHostAllocDefault));
    for (cudaEvent_t& event : passed_) {
      CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    }
  }
  ~Staging() {
    for (const cudaEvent_t event : passed_) {
      if (!event) continue;
      cudaEventSynchronize(event);
      cudaEventDestroy(event);
    }
    cudaFreeHost(memory_);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  void In(std::byte* device_memory, const std::byte* host, int64_t bytes, cudaStream_t stream,
          ThreadPool& pool) {
    for (int64_t at = 0; at < bytes; at += kPart) {
      const int64_t part = next_++ % kParts, size = std::min(kPart, bytes - at);
      WaitForPart(part);
      CopyOnHost(Part(part), host + at, size, pool);
      Copy(device_memory + at, Part(part), size, stream);
      Mark(part, stream);
    }
  }

  // Its parts are empty on return, but those of an earlier In may be on their way: copies out of
  // the ring and into it follow each other in the stream.
  void Out(std::byte* host, const std::byte* device_memory, int64_t bytes, cudaStream_t stream,
           ThreadPool& pool) {
    const int64_t first = next_, end = first + (bytes + kPart - 1) / kPart;
    for (int64_t done = first; done < end; ++done) {
      for (; next_ < std::min(end, done + kParts); ++next_) {
        const int64_t at = (next_ - first) * kPart;
        Copy(Part(next_ % kParts), device_memory + at, std::min(kPart, bytes - at), stream);
        Mark(next_ % kParts, stream);
      }
      const int64_t at = (done - first) * kPart;
      WaitForPart(done % kParts);
      CopyOnHost(host + at, Part(done % kParts), std::min(kPart, bytes - at), pool);
    }
  }

 private:
  std::byte* Part(int64_t part) { return static_cast<std::byte*>(memory_) + part * kPart; }
  // At once where the device has never copied it.
  void WaitForPart(int64_t part) {
    CheckCuda(cudaEventSynchronize(passed_[static_cast<size_t>(part)]));
  }
  void Mark(int64_t part, cudaStream_t stream) {
    CheckCuda(cudaEventRecord(passed_[static_cast<size_t>(part)], stream));
  }

  void* memory_ = nullptr;
  std::array<cudaEvent_t, kParts> passed_ = {};
  int64_t next_ = 0;  // counts on, round and round
};

struct Stagings {
  std::mutex mutex;
  std::map<cudaStream_t, std::unique_ptr<Staging>> of;
};

Stagings& All() {
  static Stagings& all = *new Stagings;  // outlives queues that end with the process
  return all;
}

Staging& StagingOf(cudaStream_t stream) {
  const std::lock_guard lock(All().mutex);
  std::unique_ptr<Staging>& staging = All().of[stream];
  if (!staging) staging = std::make_unique<Staging>();
  return *staging;
}

}  // namespace

void CopyIn(void* device_memory, const void* host, int64_t bytes, CUstream_st* stream,
            ThreadPool& pool) {
  StagingOf(stream).In(static_cast<std::byte*>(device_memory), static_cast<const std::byte*>(host),
                       bytes, stream, pool);
}

void CopyOut(void* host, const void* device_memory, int64_t bytes, CUstream_st* stream,
             ThreadPool& pool) {
  StagingOf(stream).Out(static_cast<std::byte*>(host), static_cast<const std::byte*>(device_memory),
                        bytes, stream, pool);
}

void FreeStaging(CUstream_st* stream) noexcept {
  const std::lock_guard lock(All().mutex);
  All().of.erase(stream);
}

}  // namespace mm01::cuda
