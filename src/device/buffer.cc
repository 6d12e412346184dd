#include "device/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "base/check.h"
#ifdef MM01_CUDA
#include "device/cuda_memory.h"
#endif

namespace mm01 {
namespace {

constexpr int64_t kMapFrom = 1 << 20;
constexpr std::size_t kHugePage = 2u << 20;

// Begins at a huge page where there is room for one: kernels stream through weights, and neither
// the processor's prefetching nor its table of pages likes a new small page every 4 KiB.
std::byte* Map(std::size_t size) {
  const std::size_t extra = size >= kHugePage ? kHugePage : 0;
  void* p = mmap(nullptr, size + extra, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  auto* begin = static_cast<std::byte*>(p);
  if (extra == 0) return begin;
  const std::size_t skip =
      (kHugePage - reinterpret_cast<std::uintptr_t>(p) % kHugePage) % kHugePage;
  if (skip > 0) munmap(begin, skip);
  // What is left over ends on a page of 4 KiB, as munmap wants it.
  const std::size_t used = (size + 4095) / 4096 * 4096;
  if (skip + used < size + extra) munmap(begin + skip + used, size + extra - skip - used);
  madvise(begin + skip, size, MADV_HUGEPAGE);  // a hint: refusal costs speed only
  return begin + skip;
}

std::byte* OnDevice(int64_t bytes) {
#ifdef MM01_CUDA
  return cuda::Allocate(bytes);
#else
  Fail("no device memory for " + std::to_string(bytes) + " bytes: this build has no CUDA");
#endif
}

}  // namespace

Buffer::Buffer(int64_t bytes, Device device) : bytes_(bytes), device_(device) {
  Check(bytes >= 0, "a buffer of negative size");
  if (bytes == 0) return;
  if (device == Device::kCuda) {
    data_ = OnDevice(bytes);
    return;
  }
  const auto size = static_cast<std::size_t>(bytes);
  if (bytes < kMapFrom) {
    const std::size_t rounded = (size + 63) / 64 * 64;
    data_ = static_cast<std::byte*>(std::aligned_alloc(64, rounded));
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, rounded);
    return;
  }
  data_ = Map(size);
}

Buffer::~Buffer() {
  if (!data_) return;
#ifdef MM01_CUDA
  if (device_ == Device::kCuda) {
    cuda::Free(data_);
    return;
  }
#endif
  if (bytes_ < kMapFrom) {
    std::free(data_);
  } else {
    munmap(data_, static_cast<std::size_t>(bytes_));
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

}  // namespace mm01
