// Tensors borrow memory; a Buffer (device/buffer.h) owns it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "base/check.h"
#include "tensor/dtype.h"

namespace mm01 {

// A typed window with R dims. The last dim is contiguous, the others may be strided: heads of a
// fused projection, rows of a larger buffer. Strides count elements.
template <typename T, int R>
struct View {
  T* data = nullptr;
  std::array<int64_t, R> shape{};
  std::array<int64_t, R> stride{};

  template <typename... I>
  T& operator()(I... index) const {
    static_assert(sizeof...(I) == R);
    int64_t offset = 0;
    int d = 0;
    ((offset += static_cast<int64_t>(index) * stride[static_cast<size_t>(d++)]), ...);
    return data[offset];
  }
  int64_t dim(int d) const { return shape[static_cast<size_t>(d)]; }
};

// A window whose element type and rank are known only at run time: what ops take as arguments.
struct Tensor {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> stride{};

  Tensor() = default;

  // Contiguous, the last dim fastest.
  template <typename T>
  Tensor(T* memory, std::initializer_list<int64_t> dims)
      : Tensor(kDTypeOf<T>, const_cast<std::remove_const_t<T>*>(memory), dims) {}
  Tensor(DType type, void* memory, std::initializer_list<int64_t> dims)
      : data(memory), dtype(type), rank(static_cast<int>(dims.size())) {
    Check(rank <= kMaxRank, "a tensor has at most four dims");
    int d = 0;
    for (int64_t n : dims) shape[static_cast<size_t>(d++)] = n;
    int64_t step = 1;
    for (d = rank - 1; d >= 0; --d) {
      stride[static_cast<size_t>(d)] = step;
      step *= shape[static_cast<size_t>(d)];
    }
  }

  int64_t dim(int d) const { return shape[static_cast<size_t>(d)]; }
  bool empty() const { return data == nullptr; }
  int64_t size() const {
    int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= dim(d);
    return n;
  }

  // The same memory as a View; another element type or rank is our own bug.
  template <typename T, int R>
  View<T, R> As() const {
    Check(dtype == kDTypeOf<T>,
          "tensor holds " + ToString(dtype) + ", wanted " + ToString(kDTypeOf<T>));
    Check(rank == R, "tensor has " + std::to_string(rank) + " dims, wanted " + std::to_string(R));
    Check(R == 0 || stride[R - 1] == 1, "the last dim must be contiguous");
    View<T, R> v;
    v.data = static_cast<T*>(data);
    for (size_t d = 0; d < R; ++d) {
      v.shape[d] = shape[d];
      v.stride[d] = stride[d];
    }
    return v;
  }

  // Rows begin .. end-1 of the first dim.
  Tensor Rows(int64_t begin, int64_t end) const {
    Check(rank >= 1 && 0 <= begin && begin <= end && end <= dim(0), "rows out of range");
    Tensor t = *this;
    t.data = static_cast<std::byte*>(data) + begin * stride[0] * SizeOf(dtype);
    t.shape[0] = end - begin;
    return t;
  }
};

}  // namespace mm01
