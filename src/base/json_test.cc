#include "base/json.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

namespace mm01 {
namespace {

// Expects an error that holds both the source and `text`.
void ExpectRefused(std::string_view json, Code code, const std::string& text,
                   const JsonLimits& limits = {}) {
  const auto result = ParseJson(json, "a.json", limits);
  ASSERT_FALSE(result.ok()) << json.substr(0, 100);
  EXPECT_EQ(result.status().code(), code);
  EXPECT_EQ(result.status().message().find("a.json: "), 0u) << result.status().message();
  EXPECT_NE(result.status().message().find(text), std::string::npos) << result.status().message();
}

std::string Nested(int depth) {
  const auto n = static_cast<std::size_t>(depth);
  return std::string(n, '[') + std::string(n, ']');
}

TEST(JsonTest, KeepsTheOrderOfKeys) {
  const auto result = ParseJson(R"({"z": 1, "a": [true, null, -2.5], "m": {"z": 2}})", "a.json");
  ASSERT_TRUE(result.ok()) << result.status().message();
  std::vector<std::string> keys;
  for (const auto& item : result->items()) keys.push_back(item.key());
  EXPECT_EQ(keys, (std::vector<std::string>{"z", "a", "m"}));
  EXPECT_EQ((*result)["a"][2].get<double>(), -2.5);
}

TEST(JsonTest, KeepsEveryBitOf64BitIntegers) {
  const auto result = ParseJson("[-9223372036854775808, 18446744073709551615]", "a.json");
  ASSERT_TRUE(result.ok());
  EXPECT_EQ((*result)[0].get<int64_t>(), std::numeric_limits<int64_t>::min());
  EXPECT_EQ((*result)[1].get<uint64_t>(), std::numeric_limits<uint64_t>::max());
}

TEST(JsonTest, IllFormedTextIsRefusedWithItsPlace) {
  ExpectRefused("", Code::kInvalid, "not JSON");
  ExpectRefused("{\"a\": 1", Code::kInvalid, "not JSON at byte 8");
  ExpectRefused("[1, 2] 3", Code::kInvalid, "not JSON at byte 8");
  ExpectRefused("[1,]", Code::kInvalid, "not JSON at byte 4");
  ExpectRefused("[NaN]", Code::kInvalid, "not JSON");
  ExpectRefused("[01]", Code::kInvalid, "not JSON");
  ExpectRefused("[1e999]", Code::kInvalid, "not JSON");
  ExpectRefused("{a: 1}", Code::kInvalid, "not JSON");
  ExpectRefused("[1] // no comments", Code::kInvalid, "not JSON");
  ExpectRefused(std::string_view("[\"a\0b\"]", 7), Code::kInvalid, "not JSON");
}

TEST(JsonTest, IllFormedUtf8IsRefused) {
  ExpectRefused("[\"\xff\"]", Code::kInvalid, "not JSON");
  ExpectRefused("[\"\xc0\xaf\"]", Code::kInvalid, "not JSON");          // overlong
  ExpectRefused("[\"\xed\xa0\x80\"]", Code::kInvalid, "not JSON");      // a surrogate
  ExpectRefused("[\"\xf4\x90\x80\x80\"]", Code::kInvalid, "not JSON");  // over U+10FFFF
  ExpectRefused("[\"\\ud800\"]", Code::kInvalid, "not JSON");           // half a pair
  EXPECT_TRUE(ParseJson("[\"\xf0\x9f\x8c\x8d \\ud83c\\udf0d\"]", "a.json").ok());
}

TEST(JsonTest, AKeyGivenTwiceIsRefused) {
  ExpectRefused(R"({"a": 1, "b": 2, "a": 3})", Code::kInvalid, "\"a\" stands twice");
  ExpectRefused(R"([{"x": {"k": 1, "\u006b": 2}}])", Code::kInvalid, "\"k\" stands twice");
  EXPECT_TRUE(ParseJson(R"({"a": {"a": 1}, "b": {"a": 1}})", "a.json").ok())
      << "different objects may share a key";
}

TEST(JsonTest, DepthHasALimit) {
  EXPECT_TRUE(ParseJson(Nested(64), "a.json").ok());
  ExpectRefused(Nested(65), Code::kInvalid, "deeper than 64");
  ExpectRefused(Nested(1000000), Code::kInvalid, "deeper than 64");
  ExpectRefused("{\"a\": [0]}", Code::kInvalid, "deeper than 1", {.max_depth = 1});
  EXPECT_TRUE(ParseJson("[[],[],[{}]]", "a.json", {.max_depth = 3}).ok())
      << "neighbours do not add up";
}

TEST(JsonTest, SizeHasALimit) {
  EXPECT_TRUE(ParseJson("[1]", "a.json", {.max_bytes = 3}).ok());
  ExpectRefused("[1] ", Code::kTooLarge, "4 bytes of JSON, at most 3", {.max_bytes = 3});
}

}  // namespace
}  // namespace mm01
