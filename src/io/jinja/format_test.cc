// Numbers and letters as Python 3.11 writes them.
#include "io/jinja/format.h"

#include <gtest/gtest.h>

#include <limits>

#include "io/jinja/unicode.h"

namespace mm01::jinja {
namespace {

TEST(FormatFloat, WritesTheShortestDecimalThatReadsBack) {
  EXPECT_EQ(FormatFloat(0.1), "0.1");
  EXPECT_EQ(FormatFloat(1.0), "1.0");
  EXPECT_EQ(FormatFloat(-0.0), "-0.0");
  EXPECT_EQ(FormatFloat(123456.789), "123456.789");
  EXPECT_EQ(FormatFloat(0.1 + 0.2), "0.30000000000000004");
}

TEST(FormatFloat, SwitchesToExponentsWherePythonDoes) {
  EXPECT_EQ(FormatFloat(1e15), "1000000000000000.0");
  EXPECT_EQ(FormatFloat(1e16), "1e+16");
  EXPECT_EQ(FormatFloat(0.0001), "0.0001");
  EXPECT_EQ(FormatFloat(0.00001), "1e-05");
  EXPECT_EQ(FormatFloat(1.5e300), "1.5e+300");
  EXPECT_EQ(FormatFloat(-std::numeric_limits<double>::infinity()), "-inf");
}

std::string Upper(uint32_t c) {
  std::string s;
  AppendUpper(c, s);
  return s;
}
std::string Lower(uint32_t c) {
  std::string s;
  AppendLower(c, s);
  return s;
}
std::string Title(uint32_t c) {
  std::string s;
  AppendTitle(c, s);
  return s;
}

TEST(Unicode, LettersChangeCase) {
  EXPECT_EQ(Upper('a'), "A");
  EXPECT_EQ(Lower('A'), "a");
  EXPECT_EQ(Upper(0xe9), "É");
  EXPECT_EQ(Upper(0xff), "Ÿ");   // far from its upper case
  EXPECT_EQ(Lower(0x100), "ā");  // in a range of which each second letter is upper case
  EXPECT_EQ(Lower(0x101), "ā");
  EXPECT_EQ(Upper(0xdf), "SS");  // one letter becomes two
  EXPECT_EQ(Title(0xdf), "Ss");
  EXPECT_EQ(Title(0x1c6), "\u01c5");  // a title case of its own
  EXPECT_EQ(Upper(0x4e00), "一");
}

TEST(Unicode, KnowsWhatIsSpaceAndWhatPrints) {
  EXPECT_TRUE(IsSpace(0xa0));
  EXPECT_TRUE(IsSpace(0x1f));
  EXPECT_FALSE(IsSpace(0x200b));
  EXPECT_FALSE(IsPrintable(0x200b));
  EXPECT_FALSE(IsPrintable(0xa0));
  EXPECT_TRUE(IsPrintable(' '));
  EXPECT_TRUE(IsPrintable(0x1f600));
  EXPECT_FALSE(IsPrintable(0x10ffff));
}

}  // namespace
}  // namespace mm01::jinja
