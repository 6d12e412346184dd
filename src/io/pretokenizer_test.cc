#include "io/pretokenizer.h"

#include <gtest/gtest.h>

#include "base/json.h"

namespace mm01 {
namespace {

constexpr const char* kByteLevel =
    R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})";

Result<PreTokenizer> Parsed(const std::string& json) {
  auto parsed = ParseJson(json, "test");
  return PreTokenizer::Parse(*parsed, "test");
}

// The pieces of `text`, each followed by "|".
std::string Pieces(const std::string& json, std::string_view text) {
  const auto pretokenizer = Parsed(json);
  if (!pretokenizer.ok()) return pretokenizer.status().message();
  RegexScanner scanner(text.size());
  std::string pieces;
  const Status status = pretokenizer->Run(text, scanner, [&](std::string_view piece) {
    (pieces += piece) += "|";
    return Status::Ok();
  });
  return status.ok() ? pieces : status.message();
}

std::string Sequence(const std::string& first) {
  return R"({"type": "Sequence", "pretokenizers": [)" + first + ", " + kByteLevel + "]}";
}

std::string Split(const std::string& regex, const std::string& behavior, bool invert = false) {
  return Sequence(R"({"type": "Split", "pattern": {"Regex": ")" + regex + R"("}, "behavior": ")" +
                  behavior + R"(", "invert": )" + (invert ? "true}" : "false}"));
}

TEST(PreTokenizer, EachBehaviorPutsMatchesWhereItsNameSays) {
  const std::string text = "a--b-c-";
  EXPECT_EQ(Pieces(Split("-", "Removed"), text), "a|b|c|");
  EXPECT_EQ(Pieces(Split("-", "Isolated"), text), "a|-|-|b|-|c|-|");
  EXPECT_EQ(Pieces(Split("-", "MergedWithPrevious"), text), "a-|-|b-|c-|");
  EXPECT_EQ(Pieces(Split("-", "MergedWithNext"), text), "a|-|-b|-c|-|");
  EXPECT_EQ(Pieces(Split("-", "Contiguous"), text), "a|--|b|-|c|-|");
  EXPECT_EQ(Pieces(Split("[a-z]", "Removed", true), text), "a|b|c|");
  EXPECT_EQ(Pieces(Split("[a-z]", "MergedWithNext", true), text), "a|--b|-c|-|");
}

TEST(PreTokenizer, ByteLevelHasTheRulesOfGpt2) {
  const char* json = R"({"type": "ByteLevel", "add_prefix_space": false})";
  EXPECT_EQ(Pieces(json, "I'll go  to 42nd   \n"), "I|'ll| go| | to| 42|nd|   \n|");
  EXPECT_EQ(Pieces(json, ""), "");
}

TEST(PreTokenizer, APrefixSpaceIsAddedOnlyWhereThereIsNone) {
  const char* json = R"({"type": "ByteLevel", "add_prefix_space": true, "use_regex": false})";
  EXPECT_EQ(Pieces(json, "a b"), " a b|");
  EXPECT_EQ(Pieces(json, " a b"), " a b|");
}

TEST(PreTokenizer, DigitsStandAloneOrInRows) {
  EXPECT_EQ(Pieces(Sequence(R"({"type": "Digits", "individual_digits": true})"), "a12b³"),
            "a|1|2|b|³|");
  EXPECT_EQ(Pieces(Sequence(R"({"type": "Digits", "individual_digits": false})"), "a12b³"),
            "a|12|b|³|");
}

TEST(PreTokenizer, StepsSeeOnlyTheirOwnPart) {
  const std::string json = R"({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"String": "."}, "behavior": "Isolated"},
    {"type": "Split", "pattern": {"Regex": "x$|(?<=\\.)y"}, "behavior": "Isolated"}, )" +
                           std::string(kByteLevel) + "]}";
  EXPECT_EQ(Pieces(json, "ax.yx"), "a|x|.|y|x|");
}

TEST(PreTokenizer, WhatIsNotSupportedIsRefusedWithItsPlace) {
  const struct {
    std::string json, message;
  } cases[] = {
      {"null", "pre_tokenizer is a null"},
      {"[]", "pre_tokenizer is a array"},
      {"{}", R"("type" is missing)"},
      {R"({"type": 3})", R"("type" is a number)"},
      {R"({"type": "Metaspace"})", R"(type "Metaspace", supported are ByteLevel, Split, Digits)"},
      {R"({"type": "Sequence"})", R"("pretokenizers" is no array)"},
      {R"({"type": "Sequence", "pretokenizers": []})", "no ByteLevel step"},
      {R"({"type": "Digits"})", "no ByteLevel step"},
      {R"({"type": "ByteLevel", "use_regex": 1})", R"("use_regex" is a number)"},
      {Sequence(kByteLevel), R"([1]: "ByteLevel" after ByteLevel)"},
      {Split("a", "Sideways"), R"(behavior "Sideways")"},
      {Split("(a", "Isolated"), "no regular expression"},
      {Split("a*", "Isolated"), "[0]: a pattern that matches the empty string"},
      {Sequence(R"({"type": "Split", "behavior": "Isolated"})"), R"("pattern" is neither)"},
      {Sequence(R"({"type": "Split", "behavior": "Isolated", "pattern": {"String": ""}})"),
       "empty string"},
      {Sequence(R"({"type": "Split", "behavior": "Isolated", "pattern": {"Glob": "a"}})"),
       R"("pattern" is neither)"},
  };
  for (const auto& c : cases) {
    const auto result = Parsed(c.json);
    ASSERT_FALSE(result.ok()) << c.json;
    EXPECT_NE(result.status().message().find(c.message), std::string::npos)
        << result.status().message();
    EXPECT_EQ(result.status().message().find("test: "), 0u) << result.status().message();
  }
}

TEST(PreTokenizer, MoreThan16StepsAreRefused) {
  std::string steps;
  for (int i = 0; i < 16; ++i) steps += R"({"type": "Digits"}, )";
  const auto result =
      Parsed(R"({"type": "Sequence", "pretokenizers": [)" + steps + kByteLevel + "]}");
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), Code::kTooLarge);
}

}  // namespace
}  // namespace mm01
