#include <gtest/gtest.h>

#include <vector>

#include "device/device.h"
#include "kernels/convert/convert.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"

namespace mm01 {
namespace {

TEST(ConvertCuda, RoundsAsTheCpuDoes) {
  if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
  Queue queue(1, Device::kCuda);
  for (const int64_t n : {0, 1, 63, 64, 65, 1009, 1'000'003}) {
    const CudaTensor x(queue, DType::kF32, {n}, RandomFloats(1, n));
    const CudaTensor rounded(queue, DType::kBF16, {n}), back(queue, DType::kF32, {n});
    Convert(queue, x, rounded);
    Convert(queue, rounded, back);
    EXPECT_TRUE(SameBits(back.ToFloat(), RandomBF16s(1, n)));
  }
}

}  // namespace
}  // namespace mm01
