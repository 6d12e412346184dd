#include "io/added_tokens.h"

#include <gtest/gtest.h>

namespace mm01 {
namespace {

// "text", "<id>" and so on, joined by "|".
std::string Parts(const AddedTokens& tokens, std::string_view text, bool special_as_text = false) {
  std::string parts;
  tokens.Split(text, special_as_text, [&](const AddedToken* token, std::string_view part) {
    parts += parts.empty() ? "" : "|";
    parts += token == nullptr ? std::string(part) : "<" + std::to_string(token->id) + ">";
  });
  return parts;
}

TEST(AddedTokens, TheLongestTokenAtTheFirstPlaceWins) {
  const AddedTokens tokens({{"ab", 1}, {"abcd", 2}, {"bcdef", 3}, {"b", 4}});
  EXPECT_EQ(Parts(tokens, ""), "");
  EXPECT_EQ(Parts(tokens, "xyz"), "xyz");
  EXPECT_EQ(Parts(tokens, "ab"), "<1>");
  EXPECT_EQ(Parts(tokens, "xabcx"), "x|<1>|cx");
  EXPECT_EQ(Parts(tokens, "abcdef"), "<2>|ef");
  EXPECT_EQ(Parts(tokens, "aabb"), "a|<1>|<4>");
}

TEST(AddedTokens, SpecialTokensAsTextStayTextAndTheOthersDoNot) {
  const AddedTokens tokens(
      {{.content = "<s>", .id = 1, .special = true}, {.content = "<t>", .id = 2}});
  EXPECT_EQ(Parts(tokens, "a<s>b<t>c"), "a|<1>|b|<2>|c");
  EXPECT_EQ(Parts(tokens, "a<s>b<t>c", true), "a<s>b|<2>|c");
}

TEST(AddedTokens, NormalizedOnesAreLookedForBetweenTheOthers) {
  const AddedTokens tokens({{.content = "abc", .id = 1, .normalized = true},
                            {.content = "cd", .id = 2, .normalized = false}});
  EXPECT_EQ(Parts(tokens, "abcd"), "ab|<2>");
  EXPECT_EQ(Parts(tokens, "abc cd abc"), "<1>| |<2>| |<1>");
}

TEST(AddedTokens, BytesAboveAsciiAreComparedWithoutSign) {
  const AddedTokens tokens({{"é", 1}, {"z", 2}, {"€", 3}});
  EXPECT_EQ(Parts(tokens, "z€éa"), "<2>|<3>|<1>|a");
}

}  // namespace
}  // namespace mm01
