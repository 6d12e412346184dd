// A test that needs a GPU: skipped where there is none.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "device/device.h"
#include "testing/cuda_tensor.h"

namespace mm01 {

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }

  CudaTensor Rows(DType type, const std::vector<float>& x, int64_t width) {
    return CudaTensor(queue(), type, {std::ssize(x) / width, width}, x);
  }
  CudaTensor Flat(const std::vector<float>& x) {
    return CudaTensor(queue(), DType::kF32, {std::ssize(x)}, x);
  }

 private:
  std::unique_ptr<Queue> queue_;
};

// Of float32 results, and of results rounded to bf16: that is off by 1.66e-3 over many numbers, and
// by up to 3.9e-3 in one.
inline double GradientLimit(DType type, int64_t numbers) {
  return type == DType::kF32 ? 1e-5 : numbers < 1000 ? 4e-3 : 3e-3;
}

}  // namespace mm01
