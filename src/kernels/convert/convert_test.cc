#include "kernels/convert/convert.h"

#include <gtest/gtest.h>

#include <vector>

#include "testing/arrays.h"

namespace mm01 {
namespace {

TEST(Convert, RoundsAsToBF16AndBack) {
  Queue queue(2);
  for (const int64_t n : {0, 1, 100, 70'000}) {
    std::vector<float> x = RandomFloats(1, n), back(x.size());
    std::vector<bf16> rounded(x.size());
    Convert(queue, Tensor(x.data(), {n}), Tensor(rounded.data(), {n}));
    Convert(queue, Tensor(rounded.data(), {n}), Tensor(back.data(), {n}));
    EXPECT_TRUE(SameBits(back, RandomBF16s(1, n)));
  }
}

}  // namespace
}  // namespace mm01
