// Owned memory. Large buffers come straight from the system: zeroed, on huge pages where the system
// has them, and resident only once touched.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mm01 {

class Buffer {
 public:
  Buffer() = default;
  // Throws std::bad_alloc if the system refuses. Contents start as zero.
  explicit Buffer(int64_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  int64_t bytes() const { return bytes_; }
  std::byte* data() const { return data_; }
  template <typename T>
  T* As() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;  // aligned to 64 bytes at least
  int64_t bytes_ = 0;
};

}  // namespace mm01
