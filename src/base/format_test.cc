#include "base/format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace mm01 {
namespace {

TEST(FormatTest, BytesUseTheLargestUnitThatLeavesOneOrMore) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1024), "1.00 KiB");
  EXPECT_EQ(FormatBytes(1.5 * 1024 * 1024 * 1024), "1.50 GiB");
  EXPECT_EQ(FormatBytes(0x1p60), "1024.00 PiB") << "the last unit has no end";
  EXPECT_EQ(FormatBytes(-2048), "-2.00 KiB");
}

TEST(FormatTest, CountsAreGroupedByThousands) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(123456), "123,456");
  EXPECT_EQ(FormatCount(456089655296), "456,089,655,296");
  EXPECT_EQ(FormatCount(-123), "-123");
  EXPECT_EQ(FormatCount(-1234), "-1,234");
  EXPECT_EQ(FormatCount(std::numeric_limits<int64_t>::min()), "-9,223,372,036,854,775,808");
}

TEST(FormatTest, SecondsBecomeMinutesAndHours) {
  EXPECT_EQ(FormatSeconds(0.84), "0.8 s");
  EXPECT_EQ(FormatSeconds(59.9), "59.9 s");
  EXPECT_EQ(FormatSeconds(60), "1 min 00 s");
  EXPECT_EQ(FormatSeconds(200), "3 min 20 s");
  EXPECT_EQ(FormatSeconds(3599.7), "1 h 00 min");
  EXPECT_EQ(FormatSeconds(2 * 3600 + 5 * 60 + 59), "2 h 05 min");
}

TEST(FormatTest, ATimeThatIsNoneIsAQuestionMark) {
  EXPECT_EQ(FormatSeconds(-1), "?");
  EXPECT_EQ(FormatSeconds(HUGE_VAL), "?");
  EXPECT_EQ(FormatSeconds(std::nan("")), "?");
}

}  // namespace
}  // namespace mm01
