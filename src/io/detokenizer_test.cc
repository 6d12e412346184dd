#include "io/detokenizer.h"

#include <gtest/gtest.h>

#include "base/json.h"
#include "base/rng.h"
#include "io/byte_level.h"
#include "io/utf8.h"

namespace mm01 {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";

// The bytes as ids 0 to 255, "<s>" = 256, and tokens that begin or end inside a code point.
Tokenizer ByteTokenizer() {
  Json json = Json::parse(R"({
    "added_tokens": [{"id": 256, "content": "<s>", "special": true}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
    "decoder": {"type": "ByteLevel"}, "model": {"merges": []}})");
  Json& vocab = json["model"]["vocab"];
  for (int b = 0; b < 256; ++b) vocab[SpellByte(static_cast<uint8_t>(b))] = b;
  int32_t id = 257;
  for (const std::string_view bytes : {"a\xE2\x82", "\xAC!", "\x82\xAC\xF0\x9F", "\x98\x80\xC3"}) {
    std::string spelled;
    for (const char c : bytes) spelled += SpellByte(static_cast<uint8_t>(c));
    vocab[spelled] = id++;
  }
  return Tokenizer::Parse(json.dump(), "test").value();
}

TEST(Detokenizer, CodePointsComeOutWhole) {
  const Tokenizer tokenizer = ByteTokenizer();
  StreamingDetokenizer stream(tokenizer);
  EXPECT_EQ(stream.Push(257), "a");
  EXPECT_EQ(stream.Push(258), "€!");
  EXPECT_EQ(stream.Push(0xE2), "");
  EXPECT_EQ(stream.Push(259), "€");
  EXPECT_EQ(stream.Push(260), "😀");
  EXPECT_EQ(stream.Push(0xA9), "é");
  EXPECT_EQ(stream.Finish(), "");
}

TEST(Detokenizer, WhatCannotBeCompletedIsReplacedOnce) {
  const Tokenizer tokenizer = ByteTokenizer();
  StreamingDetokenizer stream(tokenizer);
  EXPECT_EQ(stream.Push(0xF0), "");
  EXPECT_EQ(stream.Push(0x9F), "");
  EXPECT_EQ(stream.Push('x'), std::string(kReplacement) + "x");
  EXPECT_EQ(stream.Push(0x80), kReplacement);
  EXPECT_EQ(stream.Push(0xE2), "");
  EXPECT_EQ(stream.Push(0x82), "");
  EXPECT_EQ(stream.Finish(), kReplacement);
  EXPECT_EQ(stream.Finish(), "");
}

TEST(Detokenizer, SpecialTokensAndIdsOutOfRangeAreLeftOut) {
  const Tokenizer tokenizer = ByteTokenizer();
  EXPECT_EQ(StreamingDetokenizer(tokenizer).Push(256), "<s>");
  StreamingDetokenizer quiet(tokenizer, /*skip_special=*/true);
  EXPECT_EQ(quiet.Push(0xC3), "");
  EXPECT_EQ(quiet.Push(256), "");
  EXPECT_EQ(quiet.Push(-1), "");
  EXPECT_EQ(quiet.Push(1 << 30), "");
  EXPECT_EQ(quiet.Push(0xA9), "é");
}

TEST(Detokenizer, RandomIdsNeverMakeBrokenTextAndTheStepsDoNotMatter) {
  const Tokenizer tokenizer = ByteTokenizer();
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    StreamingDetokenizer stream(tokenizer), bytes(tokenizer);
    std::string text, by_byte;
    for (uint64_t i = 0; i < 30; ++i) {
      const uint64_t bits = RandomBits(seed, 2, i);
      const auto id =
          static_cast<int32_t>(bits % 3 == 0 ? 257 + (bits >> 8) % 4 : (bits >> 8) % 261);
      const std::string part = stream.Push(id);
      ASSERT_EQ(ValidUtf8Prefix(part), part.size());
      text += part;
      for (const char c : tokenizer.Bytes(id)) by_byte += bytes.Push(static_cast<uint8_t>(c));
    }
    ASSERT_EQ(text + stream.Finish(), by_byte + bytes.Finish());
  }
}

}  // namespace
}  // namespace mm01
