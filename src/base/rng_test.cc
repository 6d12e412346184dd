#include "base/rng.h"

#include <gtest/gtest.h>

#include <set>

namespace mm01 {
namespace {

TEST(RngTest, MixIsSplitMix64) {
  // The first numbers of Vigna's splitmix64.c from state 0, which steps by the golden ratio.
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;
  EXPECT_EQ(Mix64(0), 0xe220a8397b1dcdafu);
  EXPECT_EQ(Mix64(kStep), 0x6e789e6aa1b965f4u);
  EXPECT_EQ(Mix64(2 * kStep), 0x06c45d188009454fu);
}

TEST(RngTest, SeedStreamAndNumberEachChangeTheBits) {
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    for (uint64_t stream = 0; stream < 8; ++stream) {
      for (uint64_t n = 0; n < 8; ++n) seen.insert(RandomBits(seed, stream, n));
    }
  }
  EXPECT_EQ(seen.size(), 512u);
}

TEST(RngTest, UniformStaysInRangeAndHasTheMomentsOfAUniform) {
  double sum = 0, squares = 0;
  constexpr int kDraws = 100000;
  for (uint64_t n = 0; n < kDraws; ++n) {
    const double u = RandomUniform(1, 2, n);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  // Five standard errors: sqrt(1/12) and sqrt(4/45), over sqrt(100,000).
  EXPECT_NEAR(sum / kDraws, 1.0 / 2, 0.0046);
  EXPECT_NEAR(squares / kDraws, 1.0 / 3, 0.0048);
}

TEST(RngTest, NormalHasTheMomentsOfANormal) {
  double sum = 0, squares = 0;
  constexpr int kDraws = 100000;
  for (uint64_t n = 0; n < kDraws; ++n) {
    const double x = RandomNormal(1, 2, n);
    ASSERT_TRUE(std::isfinite(x));
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0.0, 0.016);
  EXPECT_NEAR(squares / kDraws, 1.0, 0.023);
}

}  // namespace
}  // namespace mm01
