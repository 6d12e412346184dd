// Owned memory. Large buffers of the CPU come straight from the system: zeroed, on huge pages where
// the system has them, and resident only once touched.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device.h"

namespace mm01 {

class Buffer {
 public:
  Buffer() = default;
  // Throws std::bad_alloc if the system or the device refuses. Contents start as zero.
  explicit Buffer(int64_t bytes, Device device = Device::kCpu);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  std::byte* data() const { return data_; }
  template <typename T>
  T* As() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;  // aligned to 64 bytes at least, 256 on a GPU
  int64_t bytes_ = 0;
  Device device_ = Device::kCpu;
};

}  // namespace mm01
