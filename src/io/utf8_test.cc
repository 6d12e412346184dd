#include "io/utf8.h"

#include <gtest/gtest.h>

namespace mm01 {
namespace {

TEST(Utf8, EveryCodePointIsReadAsItWasWritten) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string s;
    AppendUtf8(c, s);
    ASSERT_EQ(NextUtf8(s).kind, Utf8Kind::kValid) << static_cast<uint32_t>(c);
    ASSERT_EQ(NextUtf8(s).length, s.size());
    ASSERT_EQ(DecodeUtf8(s).value, c);
    ASSERT_EQ(DecodeUtf8(s).length, s.size());
  }
}

TEST(Utf8, MaximalSubpartsAreThoseOfTheUnicodeStandard) {
  // Each case: text, and the first step.
  const struct {
    std::string_view text;
    Utf8Kind kind;
    size_t length;
  } cases[] = {
      {"\x80", Utf8Kind::kInvalid, 1},
      {"\xC0\xAF", Utf8Kind::kInvalid, 1},      // overlong
      {"\xE0\x80\xAF", Utf8Kind::kInvalid, 1},  // overlong
      {"\xF0\x8F\xBF\xBF", Utf8Kind::kInvalid, 1},
      {"\xED\xA0\x80", Utf8Kind::kInvalid, 1},      // a surrogate
      {"\xF4\x90\x80\x80", Utf8Kind::kInvalid, 1},  // over U+10FFFF
      {"\xFF", Utf8Kind::kInvalid, 1},
      {"\xE1\x80\x41", Utf8Kind::kInvalid, 2},
      {"\xF1\x80\x80\x41", Utf8Kind::kInvalid, 3},
      {"\xF1\x80\x41", Utf8Kind::kInvalid, 2},
      {"\xC3", Utf8Kind::kIncomplete, 1},
      {"\xE2\x82", Utf8Kind::kIncomplete, 2},
      {"\xF0\x9F\x98", Utf8Kind::kIncomplete, 3},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(NextUtf8(c.text).kind, c.kind) << testing::PrintToString(std::string(c.text));
    EXPECT_EQ(NextUtf8(c.text).length, c.length) << testing::PrintToString(std::string(c.text));
  }
}

TEST(Utf8, ValidPrefixEndsAtTheFirstBrokenByteWhereverItIs) {
  for (size_t n = 0; n < 40; ++n) {
    const std::string valid = std::string(n, 'x') + "\xE2\x82\xAC";
    EXPECT_EQ(ValidUtf8Prefix(valid), n + 3);
    EXPECT_EQ(ValidUtf8Prefix(valid + "\xFFtail"), n + 3);
    EXPECT_EQ(ValidUtf8Prefix(valid.substr(0, n + 2)), n);
  }
}

}  // namespace
}  // namespace mm01
