#include "base/json.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
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

TEST(JsonTest, EscapesBecomeWhatTheyMean) {
  const auto result =
      ParseJson(R"(["\"\\\/\b\f\n\r\t", "\u0041\u00e9\u20AC\ud83c\udf0d"])", "a.json");
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_EQ((*result)[0], "\"\\/\b\f\n\r\t");
  EXPECT_EQ((*result)[1], "A\u00e9\u20ac\U0001f30d");
  ExpectRefused(R"(["\x"])", Code::kInvalid, "at byte 4: found 'x', wanted one of");
  ExpectRefused(R"(["\u12G4"])", Code::kInvalid, "found 'G', wanted a hexadecimal digit");
  ExpectRefused(R"(["\udc00"])", Code::kInvalid, "a high surrogate");
  ExpectRefused(R"(["\ud800\u0041"])", Code::kInvalid, "a low surrogate");
  ExpectRefused("[\"a\nb\"]", Code::kInvalid, "found the byte 0x0a, wanted an escape");
  ExpectRefused("[\"a", Code::kInvalid, "found the end, wanted '\"'");
}

// What nlohmann makes of it; it takes a byte 0 for the end and has no limit of depth.
TEST(JsonTest, SpoiltTextIsReadAsNlohmannReadsIt) {
  const std::vector<std::string> texts = {
      R"({"a": [1, -2, 3.5, -0, 1e5, 2E-3, 0.0, 18446744073709551616, 1e-400, -9223372036854775809]})",
      R"(["\u00e9\ud83c\udf0d\n", "\"", "\\", true, false, null, {}, [], {"b": {"c": ""}}])",
      "\xEF\xBB\xBF [\"\xf0\x9f\x8c\x8d \xc3\xa9 \xe2\x82\xac\", \t\r\n 0.5e+7 ]"};
  const std::string_view bytes =
      "{}[]\",:\\/0159.+-eEutfnl \n\t\x01\x7f\x80\xbf\xc0\xe0\xed\xf4\xff";
  std::mt19937 random(5);
  int num_accepted = 0;
  for (int i = 0; i < 40'000; ++i) {
    std::string text = texts[random() % texts.size()];
    for (unsigned changes = random() % 3; changes > 0; --changes) {
      const size_t at = random() % text.size();
      if (random() % 3 == 0) {
        text.erase(at, 1);
      } else {
        text.replace(at, random() % 2, 1, bytes[random() % bytes.size()]);
      }
    }
    const auto result = ParseJson(text, "a.json");
    const Json wanted = Json::parse(text, nullptr, false);
    if (!result.ok() && result.status().message().find("stands twice") != std::string::npos)
      continue;
    ASSERT_EQ(result.ok(), !wanted.is_discarded()) << text << result.status().message();
    if (!result.ok()) continue;
    ++num_accepted;
    ASSERT_EQ(result->dump(), wanted.dump()) << text;
  }
  EXPECT_GT(num_accepted, 10'000);
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
