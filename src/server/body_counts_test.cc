#include "server/body_counts.h"

#include <gtest/gtest.h>

#include <string>

namespace mm01::server {
namespace {

std::string Repeat(const std::string& part, int64_t count) {
  std::string text;
  for (int64_t i = 0; i < count; ++i) text += part;
  return text;
}

TEST(BodyCounts, CountsWhatStandsOutsideOfTexts) {
  const int64_t ids = kMaxBodyEntries + 2 * 10;
  EXPECT_TRUE(CheckBodyCounts(Repeat("1,", ids), 10).ok());
  EXPECT_FALSE(CheckBodyCounts(Repeat("1,", ids + 1), 10).ok());
  EXPECT_TRUE(CheckBodyCounts(Repeat("[]", kMaxBodyLists), 10).ok());
  EXPECT_FALSE(CheckBodyCounts(Repeat("{[", kMaxBodyLists), 10).ok());
  EXPECT_TRUE(CheckBodyCounts(Repeat("\"\"", kMaxBodyTexts), 10).ok());
  EXPECT_FALSE(CheckBodyCounts(Repeat("\"\"", kMaxBodyTexts + 1), 10).ok());
  EXPECT_TRUE(CheckBodyCounts("\"" + Repeat("[{,\\\"", ids) + "\"", 10).ok());
  EXPECT_TRUE(CheckBodyCounts("\"\\", 10).ok()) << "cut off";
}

}  // namespace
}  // namespace mm01::server
