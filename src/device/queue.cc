#include "device/queue.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#ifdef MM01_CUDA
#include "device/cuda_memory.h"
#endif

namespace mm01 {
namespace {

constexpr int64_t kAlign = 256;
constexpr int64_t kMinChunk = 1 << 20;

}  // namespace

Queue::Queue(int num_threads, Device device) : device_(device), pool_(num_threads) {
#ifdef MM01_CUDA
  if (device == Device::kCuda) stream_ = cuda::MakeStream();
#else
  Check(device == Device::kCpu, "this build has no CUDA");
#endif
}

Queue::~Queue() {
#ifdef MM01_CUDA
  if (stream_) cuda::FreeStream(stream_);
#endif
}

void Queue::Wait() {
#ifdef MM01_CUDA
  if (stream_) cuda::WaitFor(stream_);
#endif
}

void Queue::CopyToDevice(void* device_memory, const void* host, int64_t bytes) {
#ifdef MM01_CUDA
  if (stream_ && bytes >= cuda::kStagedFrom) {
    return cuda::CopyIn(device_memory, host, bytes, stream_, pool_);
  }
#endif
  CopyOnDevice(device_memory, host, bytes);  // the runtime has read pageable memory on return
}

void Queue::CopyToHost(void* host, const void* device_memory, int64_t bytes) {
#ifdef MM01_CUDA
  if (stream_ && bytes >= cuda::kStagedFrom) {
    return cuda::CopyOut(host, device_memory, bytes, stream_, pool_);
  }
#endif
  CopyOnDevice(host, device_memory, bytes);
  Wait();
}

void Queue::CopyOnDevice(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
#ifdef MM01_CUDA
  if (stream_) return cuda::Copy(to, from, bytes, stream_);
#endif
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

int64_t Queue::scratch_bytes() const {
  int64_t sum = 0;
  for (const Chunk& c : chunks_) sum += c.memory.bytes();
  return sum;
}

Scratch::Scratch(Queue& queue)
    : queue_(queue),
      num_chunks_(queue.chunks_.size()),
      used_(queue.chunks_.empty() ? 0 : queue.chunks_.back().used) {}

Scratch::~Scratch() {
  auto& chunks = queue_.chunks_;
  if (num_chunks_ > 0) {
    for (std::size_t i = num_chunks_; i < chunks.size(); ++i) chunks[i].used = 0;
    // Later chunks stay until the outermost scope ends, which then trades them all for one.
    chunks[num_chunks_ - 1].used = used_;
  } else {
    for (auto& c : chunks) c.used = 0;
  }
  const bool outermost =
      std::all_of(chunks.begin(), chunks.end(), [](auto& c) { return c.used == 0; });
  if (outermost && chunks.size() > 1) {
    const int64_t total = queue_.scratch_bytes();
    chunks.clear();
    chunks.push_back({.memory = Buffer(total, queue_.device_)});
  }
}

void* Scratch::GetBytes(int64_t bytes) {
  Check(bytes >= 0, "scratch of negative size");
  const int64_t need = (bytes + kAlign - 1) / kAlign * kAlign;
  auto& chunks = queue_.chunks_;
  if (chunks.empty() || chunks.back().used + need > chunks.back().memory.bytes()) {
    chunks.push_back(
        {.memory = Buffer(std::max({need, kMinChunk, queue_.scratch_bytes()}), queue_.device_)});
  }
  auto& top = chunks.back();
  void* p = top.memory.data() + top.used;
  top.used += need;
  return p;
}

}  // namespace mm01
