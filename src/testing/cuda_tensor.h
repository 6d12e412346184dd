// Tensors on the GPU for tests and benches: made from the CPU's values and read back as float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "device/queue.h"
#include "tensor/dtype.h"
#include "tensor/tensor.h"

namespace mm01 {

// Every byte 0xFF, which is NaN in float32 and bf16: what a kernel leaves unwritten shows.
inline void PoisonDevice(Queue& queue, const Buffer& buffer) {
  constexpr int64_t kPiece = 1 << 24;
  const std::vector<uint8_t> poison(static_cast<size_t>(std::min(buffer.bytes(), kPiece)), 0xFF);
  for (int64_t at = 0; at < buffer.bytes(); at += kPiece) {
    queue.CopyToDevice(buffer.data() + at, poison.data(), std::min(kPiece, buffer.bytes() - at));
  }
}

class CudaTensor {
 public:
  // Poisoned.
  CudaTensor(Queue& queue, DType dtype, const std::vector<int64_t>& shape) : queue_(&queue) {
    tensor_.dtype = dtype;
    tensor_.rank = static_cast<int>(shape.size());
    Check(tensor_.rank <= Tensor::kMaxRank, "a tensor has at most four dims");
    int64_t step = 1;
    for (size_t d = shape.size(); d-- > 0;) {
      tensor_.shape[d] = shape[d];
      tensor_.stride[d] = step;
      step *= shape[d];
    }
    buffer_ = Buffer(step * SizeOf(dtype), Device::kCuda);
    PoisonDevice(queue, buffer_);
    tensor_.data = buffer_.data();
  }

  // Of float32 values, rounded to bf16 where `dtype` says so.
  CudaTensor(Queue& queue, DType dtype, const std::vector<int64_t>& shape,
             const std::vector<float>& values)
      : CudaTensor(queue, dtype, shape) {
    Check(std::ssize(values) == tensor_.size(), "values do not fill the tensor");
    if (dtype == DType::kBF16) {
      std::vector<bf16> rounded(values.size());
      for (size_t i = 0; i < values.size(); ++i) rounded[i] = ToBF16(values[i]);
      Put(rounded);
    } else {
      Check(dtype == DType::kF32, "values are float32 or bf16");
      Put(values);
    }
  }

  static CudaTensor Int64(Queue& queue, const std::vector<int64_t>& values) {
    CudaTensor t(queue, DType::kI64, {std::ssize(values)});
    t.Put(values);
    return t;
  }
  static CudaTensor Int32(Queue& queue, const std::vector<int64_t>& shape,
                          const std::vector<int32_t>& values) {
    CudaTensor t(queue, DType::kI32, shape);
    t.Put(values);
    return t;
  }

  const Tensor& tensor() const { return tensor_; }
  operator const Tensor&() const { return tensor_; }  // an op's argument

  // Of float32 or bf16.
  std::vector<float> ToFloat() const {
    if (tensor_.dtype == DType::kF32) return Get<float>();
    std::vector<float> out;
    for (const bf16 x : Get<bf16>()) out.push_back(mm01::ToFloat(x));
    return out;
  }
  std::vector<int32_t> ToInt32() const { return Get<int32_t>(); }
  // The bytes as they are, to compare runs bit by bit.
  std::vector<uint8_t> Bytes() const {
    std::vector<uint8_t> bytes(static_cast<size_t>(buffer_.bytes()));
    queue_->CopyToHost(bytes.data(), buffer_.data(), buffer_.bytes());
    return bytes;
  }

 private:
  template <typename T>
  void Put(const std::vector<T>& values) {
    queue_->CopyToDevice(buffer_.data(), values.data(), buffer_.bytes());
  }
  template <typename T>
  std::vector<T> Get() const {
    Check(tensor_.dtype == kDTypeOf<T>, "the tensor has another element type");
    std::vector<T> values(static_cast<size_t>(tensor_.size()));
    queue_->CopyToHost(values.data(), buffer_.data(), buffer_.bytes());
    return values;
  }

  Queue* queue_;
  Buffer buffer_;
  Tensor tensor_;
};

}  // namespace mm01
