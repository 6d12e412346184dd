// The pointwise functions on a GPU against their formulas in double.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "device/device.h"
#include "kernels/activation/activation.h"
#include "kernels/activation/activation_cases.h"
#include "kernels/activation/activation_ref.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

class ActivationCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }
  CudaTensor Rows(DType type, const Floats& x, int64_t width) {
    return CudaTensor(queue(), type, {std::ssize(x) / width, width}, x);
  }

 private:
  std::unique_ptr<Queue> queue_;
};

TEST_F(ActivationCudaTest, AgreesWithTheDoubleReference) {
  for (const ActivationCase& c : kActivationCases) {
    const int64_t n = c.rows * c.width;
    Floats x = RandomBF16s(1, n);
    for (float& v : x) v *= 4.0f;
    const Floats y = RandomBF16s(2, n), logit = RandomFloats(3, c.rows);
    std::vector<double> silu, glu, blend;
    for (size_t i = 0; i < x.size(); ++i) {
      silu.push_back(ReferenceSilu(x[i]));
      glu.push_back(ReferenceSwiGlu(x[i], y[i]));
      blend.push_back(ReferenceBlend(x[i], y[i], logit[i / static_cast<size_t>(c.width)]));
    }
    for (const DType type : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(ToString(type) + ", " + std::to_string(c.width) + " numbers");
      // Rounding to bf16 is off by 1.7e-3 over many numbers, and by up to 2^-8 in one.
      const double limit = type == DType::kF32 ? 1e-6 : n < 1000 ? 4e-3 : 2e-3;
      const CudaTensor a = Rows(type, x, c.width), b = Rows(type, x, c.width);
      const CudaTensor d = Rows(type, x, c.width), other = Rows(type, y, c.width);
      const CudaTensor l = Rows(DType::kF32, logit, 1);
      Silu(queue(), a);
      SwiGlu(queue(), b, other);
      BlendShared(queue(), d, other, l);
      EXPECT_LE(RelativeError(a.ToFloat(), silu), limit);
      EXPECT_LE(RelativeError(b.ToFloat(), glu), limit);
      EXPECT_LE(RelativeError(d.ToFloat(), blend), limit);
    }
  }
}

TEST_F(ActivationCudaTest, LargeNumbersNeitherOverflowNorTurnToNaN) {
  const Floats x = {88,    89,     104,   1000,   1e30f, -88,   -89, -104,
                    -1000, -1e30f, 3e38f, -3e38f, 0,     -0.0f, 1,   2};
  const CudaTensor a = Rows(DType::kF32, x, 16);
  Silu(queue(), a);
  const Floats got = a.ToFloat();
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] > 80) {
      EXPECT_EQ(got[i], x[i]);
    } else if (x[i] < -80) {
      EXPECT_LE(std::abs(got[i]), 1e-38 * std::abs(static_cast<double>(x[i]))) << x[i];
    }
  }
}

TEST_F(ActivationCudaTest, RowsMayBeStridedAndWhatLiesBetweenThemIsLeftAlone) {
  constexpr int64_t kRows = 3, kWide = 40;
  for (const int64_t width : {16, 19}) {
    const Floats x = RandomBF16s(4, kRows * kWide), y = RandomBF16s(5, kRows * width);
    const CudaTensor wide = Rows(DType::kBF16, x, kWide), up = Rows(DType::kBF16, y, width);
    Tensor gate = wide;
    gate.shape[1] = width;
    SwiGlu(queue(), gate, up);
    Floats want = x;
    for (int64_t r = 0; r < kRows; ++r) {
      const Floats row(x.begin() + r * kWide, x.begin() + r * kWide + width);
      const Floats other(y.begin() + r * width, y.begin() + (r + 1) * width);
      const CudaTensor a = Rows(DType::kBF16, row, width), b = Rows(DType::kBF16, other, width);
      SwiGlu(queue(), a, b);
      std::ranges::copy(a.ToFloat(), want.begin() + r * kWide);
    }
    EXPECT_TRUE(SameBits(wide.ToFloat(), want));
  }
}

TEST_F(ActivationCudaTest, NoRowsAreNoWork) {
  const CudaTensor none(queue(), DType::kBF16, {0, 16});
  Silu(queue(), none);
  SwiGlu(queue(), none, none);
}

}  // namespace
}  // namespace mm01
