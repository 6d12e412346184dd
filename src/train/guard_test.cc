#include "train/guard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/rng.h"

namespace mm01::train {
namespace {

double Noise(uint64_t n, uint64_t stream = 0) {
  return RandomNormal(1, stream, n);
}

TEST(Guards, SkipWhatIsNotFiniteFromTheFirstStep) {
  Guard guard(GuardSpec{});
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(guard.Judge(nan, 1).skip);
  EXPECT_TRUE(guard.Judge(1, -inf).skip);
  const Verdict v = guard.Judge(3, inf);
  EXPECT_TRUE(v.skip);
  EXPECT_EQ(v.reason, "the gradient norm is inf");
  EXPECT_EQ(guard.state().skipped, 3);
  EXPECT_EQ(guard.state().skipped_in_row, 3);
  EXPECT_FALSE(guard.Judge(3, 1).skip);
  EXPECT_EQ(guard.state().skipped_in_row, 0);
}

TEST(Guards, SkipSpikesOnceTheWindowIsFull) {
  Guard guard(GuardSpec{});
  for (uint64_t i = 0; i < 127; ++i) {
    EXPECT_FALSE(guard.Judge(4 + 0.1 * Noise(i), 1 + 0.05 * Noise(i, 1)).skip);
  }
  EXPECT_FALSE(guard.Judge(4 + 0.1 * 7, 1).skip);  // the 128th step fills the window
  EXPECT_FALSE(guard.Judge(4.4, 1).skip);
  EXPECT_FALSE(guard.Judge(4, 2).skip);  // a norm may double
  const Verdict v = guard.Judge(4, 4);
  EXPECT_TRUE(v.skip);
  EXPECT_GT(v.norm_z, 6);
  EXPECT_NE(v.reason.find("the gradient norm 4 is "), std::string::npos) << v.reason;
  EXPECT_NE(v.reason.find("the mean of 128 steps"), std::string::npos) << v.reason;
  EXPECT_FALSE(guard.Judge(2, 0.1).skip);  // far below is no spike
}

TEST(Guards, LeaveACleanRunAlone) {
  Guard guard(GuardSpec{});
  for (uint64_t i = 0; i < 2000; ++i) {
    const double falling = 3 + 6 / (1 + 0.01 * static_cast<double>(i));
    ASSERT_FALSE(guard.Judge(falling + 0.05 * Noise(i), 0.5 + 0.1 * Noise(i, 1)).skip) << i;
  }
}

// The norm doubles within some steps where a model learns to look things up, and stays there.
TEST(Guards, TakeANewLevelOfTheNorm) {
  Guard guard(GuardSpec{});
  for (uint64_t i = 0; i < 1000; ++i) {
    const double level = i < 500 ? 0.2 : std::min(0.5, 0.2 + 0.02 * static_cast<double>(i - 500));
    ASSERT_FALSE(guard.Judge(3, level * (1 + 0.05 * Noise(i))).skip) << i;
  }
}

TEST(Guards, TakeALevelThatJumpedWithinAFewSteps) {
  Guard guard(GuardSpec{});
  for (uint64_t i = 0; i < 200; ++i) guard.Judge(3, 0.2 * (1 + 0.05 * Noise(i)));
  for (uint64_t i = 0; i < 200; ++i) guard.Judge(3, 1.0 * (1 + 0.05 * Noise(i)));
  EXPECT_GE(guard.state().skipped, 1);
  EXPECT_LT(guard.state().skipped, 8);
  EXPECT_FALSE(guard.hopeless());
}

TEST(Guards, EndARunThatStaysFarOff) {
  Guard guard(GuardSpec{});
  for (uint64_t i = 0; i < 200; ++i) guard.Judge(3, 0.2 * (1 + 0.05 * Noise(i)));
  for (int i = 0; i < 8; ++i) guard.Judge(3, 1000);
  EXPECT_TRUE(guard.hopeless());
}

TEST(Guards, AreHopelessAfterEightInARow) {
  Guard guard(GuardSpec{});
  for (int i = 0; i < 7; ++i) guard.Judge(std::nan(""), 1);
  EXPECT_FALSE(guard.hopeless());
  guard.Judge(std::nan(""), 1);
  EXPECT_TRUE(guard.hopeless());
}

}  // namespace
}  // namespace mm01::train
