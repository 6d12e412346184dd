#include "io/regex_dialect.h"

#include <gtest/gtest.h>

namespace mm01 {
namespace {

TEST(RegexDialect, WhatMeansTheSameIsCopied) {
  for (const char* same : {R"( ?[^x\p{L}\p{N}]+[\r\n]*|a++(?!b)|(?<=c)d|(?i:'s|'t)?)",
                           R"(\p{N}{1,3}|x{2}|x{2,}?|[-a-z\-\]]$|^\A.\z|(y))", "é[一-龥]+"}) {
    const auto result = OnigurumaToPcre2(same);
    ASSERT_TRUE(result.ok()) << result.status().message();
    EXPECT_EQ(*result, same);
  }
}

TEST(RegexDialect, WhatMeansAnotherThingIsSpelledAnew) {
  const struct {
    const char *oniguruma, *pcre2;
  } cases[] = {
      {R"(\d\D[\d])", R"(\p{Nd}\P{Nd}[\p{Nd}])"},
      {R"(\p{Han}\P{Greek}\p{^L})", R"(\p{sc:Han}\P{sc:Greek}\P{L})"},
      {R"(\v\x41\u00e9\x{1F600})", R"(\x{b}\x{41}\x{e9}\x{1f600})"},
      {"x{,3}", "x{0,3}"},
      {"{a}{", R"(\{a}\{)"},
      {R"(\w)", R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}])"},
  };
  for (const auto& c : cases) {
    const auto result = OnigurumaToPcre2(c.oniguruma);
    ASSERT_TRUE(result.ok()) << c.oniguruma << ": " << result.status().message();
    EXPECT_EQ(*result, c.pcre2);
  }
}

TEST(RegexDialect, WhatHasNoCounterpartIsRefusedByNameAndPlace) {
  const struct {
    const char *pattern, *message;
  } cases[] = {
      {R"(a\b)", R"(\b at byte 1)"},
      {R"((a)\1)", R"(\1 at byte 3)"},
      {"x{1,3}+", "{}+"},
      {"x{3}?", "{n}?"},
      {"(*ACCEPT)a", "a group that is none of"},
      {"(?R)", "a group that is none of"},
      {"(?i)a", "a group that is none of"},
      {"[a[b]]", "[ inside a class"},
      {"[[:alpha:]]", "[ inside a class"},
      {"[a&&b]", "&& inside a class"},
      {"[]a]", "a class that starts with ]"},
      {R"([\s-a])", "- next to a set"},
      {R"([a-\s])", "- next to a set"},
      {R"([\W])", R"(\W inside a class)"},
      {"[a", "a class without ]"},
      {"a\\", "a lone backslash"},
      {R"(\pL)", R"(\p without {name})"},
      {R"(\p{})", "a property without a name"},
      {R"(\p{L)", R"(\p without {name})"},
      {R"(\p{sc=Han})", "a property without a name"},
      {R"(\xe9)", R"(\x80 or above)"},
      {R"(\x{110000})", "no code point"},
      {R"(\x{d800})", "no code point"},
      {R"(\x{)", "no code point"},
      {R"(\u12)", "too few digits"},
  };
  for (const auto& c : cases) {
    const auto result = OnigurumaToPcre2(c.pattern);
    ASSERT_FALSE(result.ok()) << c.pattern;
    EXPECT_EQ(result.status().code(), Code::kUnsupported);
    EXPECT_NE(result.status().message().find(c.message), std::string::npos)
        << result.status().message();
  }
}

}  // namespace
}  // namespace mm01
