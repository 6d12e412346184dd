#include "io/split_regex.h"

#include <gtest/gtest.h>

#include <vector>

namespace mm01 {
namespace {

using Found = RegexScanner::Found;

// All matches, as the lengths of gap and match in turn; ends with the error, if any.
std::vector<size_t> Lengths(const SplitRegex& regex, std::string_view text,
                            Status* error = nullptr) {
  RegexScanner scanner(text.size());
  std::vector<size_t> lengths;
  for (size_t at = 0;;) {
    const Found found = scanner.Find(regex, text, at);
    if (found == Found::kError && error != nullptr) *error = scanner.status();
    if (found != Found::kMatch) return lengths;
    lengths.push_back(scanner.begin() - at);
    lengths.push_back(scanner.end() - scanner.begin());
    at = scanner.end();
  }
}

SplitRegex Compiled(std::string_view pattern) {
  auto regex = SplitRegex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status().message();
  return std::move(regex).value();
}

TEST(SplitRegex, MatchesDoNotDependOnTheWindow) {
  const SplitRegex regex = Compiled(R"(é+|\s+(?!\S)|(?<=x)y|z$)");
  for (const size_t n : {1, 2, 60, 126, 127, 128, 129, 511, 512, 513, 5000}) {
    std::string text = "q";
    for (size_t i = 0; i < n; ++i) text += "é";
    text += std::string(n + 1, ' ') + std::string(n, 'x') + "yz";
    EXPECT_EQ(Lengths(regex, text), (std::vector<size_t>{1, 2 * n, 0, n, 1 + n, 1, 0, 1})) << n;
  }
}

TEST(SplitRegex, WhiteSpaceIsThatOfUnicodeAndHasNoMongolianVowelSeparator) {
  EXPECT_EQ(Lengths(Compiled(R"(\s+)"), "a\xC2\x85\xE3\x80\x80\xE1\xA0\x8E"),
            (std::vector<size_t>{1, 5}));
  EXPECT_EQ(Lengths(Compiled(R"([\S]+)"), "a\xC2\x85\xE1\xA0\x8E"),
            (std::vector<size_t>{0, 1, 2, 3}));
}

TEST(SplitRegex, ALiteralIsNoPattern) {
  auto regex = SplitRegex::Literal("a.*");
  ASSERT_TRUE(regex.ok());
  EXPECT_EQ(Lengths(*regex, "aaa.*b"), (std::vector<size_t>{2, 3}));
}

TEST(SplitRegex, PatternsThatNeedTooMuchWorkEndInAnError) {
  // The first is exponential in a row of a, the second looks to the end of the text from each
  // place.
  for (const char* pattern : {"(a+)+b|a", "a(?=.*z)|.", "(?:a|aa)+$z|a"}) {
    Status error;
    Lengths(Compiled(pattern), std::string(100000, 'a'), &error);
    EXPECT_EQ(error.code(), Code::kTooLarge) << pattern;
    EXPECT_NE(error.message().find("too much work at byte"), std::string::npos) << error.message();
  }
}

TEST(SplitRegex, LongPiecesOfUsualPatternsMeetNoLimit) {
  const SplitRegex regex =
      Compiled(R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+|[\p{Lu}\p{M}]+[\p{Ll}\p{M}]*|)"
               R"( ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
  for (const char c : {'a', 'A', '^', ' ', '\n'}) {
    EXPECT_EQ(Lengths(regex, std::string(1 << 20, c)), (std::vector<size_t>{0, 1 << 20})) << c;
  }
}

TEST(SplitRegex, BadPatternsAreRefused) {
  const struct {
    std::string pattern;
    Code code;
  } cases[] = {{"(a", Code::kInvalid},
               {"a**", Code::kInvalid},
               {R"(\p{Klingon})", Code::kInvalid},
               {"a*", Code::kUnsupported},  // matches the empty string
               {"", Code::kUnsupported},
               {std::string(SplitRegex::kMaxPatternBytes + 1, 'a'), Code::kTooLarge},
               {std::string(1000, '(') + "a" + std::string(1000, ')'), Code::kInvalid},
               {"(?:(?:(?:a{60000}){60000}){60000})", Code::kInvalid}};
  for (const auto& c : cases) {
    const auto regex = SplitRegex::Compile(c.pattern);
    ASSERT_FALSE(regex.ok()) << c.pattern.substr(0, 50);
    EXPECT_EQ(regex.status().code(), c.code) << regex.status().message();
  }
}

}  // namespace
}  // namespace mm01
