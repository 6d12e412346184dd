// Memory that shows what a kernel did to it. For tests only.
//
//   64 guard bytes | n elements of NaN, aligned to 64 bytes | 64 guard bytes
//
// Output that is read before it is written, or never written, stays NaN and passes no comparison; a
// write next to the elements fails the test when the vector goes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensor/dtype.h"

namespace mm01 {

// NaN, or for types that have none the value that no test works out to: the lowest.
template <typename T>
T Poison() {
  if constexpr (std::is_same_v<T, bf16>) {
    return ToBF16(std::numeric_limits<float>::quiet_NaN());
  } else if constexpr (std::is_floating_point_v<T>) {
    return std::numeric_limits<T>::quiet_NaN();
  } else {
    return std::numeric_limits<T>::lowest();
  }
}

template <typename T>
class PoisonedVector {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit PoisonedVector(std::size_t n)
      : memory_(kAlign + 2 * kGuard + n * sizeof(T), kGuardByte), size_(n) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data()) + kGuard;
    offset_ = kGuard + (kAlign - address % kAlign) % kAlign;
    std::fill(begin(), end(), Poison<T>());
  }
  ~PoisonedVector() {
    EXPECT_TRUE(GuardsIntact()) << "something wrote next to a PoisonedVector of " << size_;
  }
  PoisonedVector(PoisonedVector&& other) noexcept
      : memory_(std::exchange(other.memory_, {})),
        size_(std::exchange(other.size_, 0)),
        offset_(other.offset_) {}
  PoisonedVector& operator=(PoisonedVector&&) = delete;

  std::size_t size() const { return size_; }
  T* data() { return reinterpret_cast<T*>(memory_.data() + offset_); }
  const T* data() const { return reinterpret_cast<const T*>(memory_.data() + offset_); }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }

  // Elements that still hold exactly the poison.
  std::size_t NumUnwritten() const {
    const T poison = Poison<T>();
    return static_cast<std::size_t>(std::count_if(
        begin(), end(), [&](const T& x) { return std::memcmp(&x, &poison, sizeof(T)) == 0; }));
  }

  bool GuardsIntact() const {
    if (memory_.empty()) return true;  // moved from
    const auto is_guard = [](std::byte b) { return b == kGuardByte; };
    const auto first = memory_.begin() + static_cast<std::ptrdiff_t>(offset_);
    return std::all_of(memory_.begin(), first, is_guard) &&
           std::all_of(first + static_cast<std::ptrdiff_t>(size_ * sizeof(T)), memory_.end(),
                       is_guard);
  }

 private:
  static constexpr std::size_t kAlign = 64;
  static constexpr std::size_t kGuard = 64;
  static constexpr std::byte kGuardByte{0xa5};

  std::vector<std::byte> memory_;
  std::size_t size_;
  std::size_t offset_ = 0;
};

}  // namespace mm01
