#include "io/tokenizer.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "base/rng.h"
#include "io/byte_level.h"

namespace mm01 {
namespace {

using Special = Tokenizer::Special;
using Ids = std::vector<int32_t>;

// All 256 bytes as ids 0 to 255, "he" = 256, "hell" by way of "ll" = 257, the special <s> = 259.
Json Small() {
  Json vocab = Json::object();
  for (int b = 0; b < 256; ++b) vocab[SpellByte(static_cast<uint8_t>(b))] = b;
  vocab["he"] = 256;
  vocab["ll"] = 257;
  vocab["hell"] = 258;
  Json json = Json::parse(R"({
    "added_tokens": [{"id": 259, "content": "<s>", "special": true, "normalized": false},
                     {"id": 260, "content": "<think>", "special": false, "normalized": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "merges": ["h e", ["l", "l"], "he ll"]}})");
  json["model"]["vocab"] = vocab;
  return json;
}

Result<Tokenizer> Parsed(const Json& json) {
  return Tokenizer::Parse(json.dump(), "test.json");
}

Tokenizer SmallTokenizer() {
  return Parsed(Small()).value();
}

TEST(Tokenizer, MergesAreMadeAndUndone) {
  const Tokenizer tokenizer = SmallTokenizer();
  EXPECT_EQ(*tokenizer.Encode("hello he", Special::kParse), (Ids{258, 'o', ' ', 256}));
  EXPECT_EQ(tokenizer.Decode(Ids{258, 'o', ' ', 256}), "hello he");
  EXPECT_EQ(*tokenizer.Encode("", Special::kParse), Ids());
  EXPECT_EQ(tokenizer.size(), 261);
}

TEST(Tokenizer, TextThatSpellsASpecialTokenIsTextUnlessAskedFor) {
  const Tokenizer tokenizer = SmallTokenizer();
  EXPECT_EQ(*tokenizer.Encode("a<s>", Special::kParse), (Ids{'a', 259}));
  EXPECT_EQ(*tokenizer.Encode("a<s>", Special::kAsText), (Ids{'a', '<', 's', '>'}));
  EXPECT_EQ(*tokenizer.Encode("<think>", Special::kAsText), (Ids{260}));
}

TEST(Tokenizer, NoWayOfSpellingASpecialTokenMakesItFromText) {
  Json json = Small();
  json["model"]["vocab"]["<s"] = 261;
  json["model"]["vocab"]["<s>"] = 259;
  json["model"]["merges"] = {"< s", "<s >"};
  json["model"]["ignore_merges"] = true;
  json["pre_tokenizer"]["use_regex"] = false;
  const auto tokenizer = Parsed(json);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ(*tokenizer->Encode("<s>", Special::kAsText), (Ids{261, '>'}));
  EXPECT_EQ(*tokenizer->Encode("<s>", Special::kParse), (Ids{259}));
  EXPECT_EQ(*tokenizer->Encode("<s", Special::kAsText), (Ids{261}));

  json["added_tokens"][0] = {{"id", 'x'}, {"content", "x"}, {"special", true}};
  EXPECT_FALSE(Parsed(json).ok()) << "a byte that is a special token cannot be avoided";
}

TEST(Tokenizer, AnyBytesComeBack) {
  const Tokenizer tokenizer = SmallTokenizer();
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    std::string text;
    for (uint64_t i = 0; i < seed % 40; ++i) {
      const uint64_t bits = RandomBits(seed, 1, i);
      // All bytes, and those that begin or go on in UTF-8 more often.
      static constexpr std::string_view kUsual = "he l\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80<s>";
      text += bits % 3 == 0 ? static_cast<char>(bits >> 32) : kUsual[(bits >> 8) % kUsual.size()];
    }
    for (const Special special : {Special::kAsText, Special::kParse}) {
      const auto ids = tokenizer.Encode(text, special);
      ASSERT_TRUE(ids.ok());
      ASSERT_EQ(tokenizer.Decode(*ids), text);
    }
  }
}

TEST(Tokenizer, LongRowsOfOneCharacterComeBack) {
  const Tokenizer tokenizer = SmallTokenizer();
  for (const char* unit : {"l", "^", " ", "\n", "7", "\xCC\x81", "\xFF", "<s", "hel", " \n"}) {
    std::string text;
    while (text.size() < 100000) text += unit;
    const auto ids = tokenizer.Encode(text, Special::kAsText);
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    EXPECT_EQ(tokenizer.Decode(*ids), text) << unit;
  }
}

TEST(Tokenizer, IdsThatAreNoTokenHaveNoBytes) {
  const Tokenizer tokenizer = SmallTokenizer();
  for (const int32_t id : {-1, 261, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer.Bytes(id), "");
    EXPECT_FALSE(tokenizer.IsSpecial(id));
  }
  EXPECT_EQ(tokenizer.Decode(Ids{-5, 'a', 1 << 30}), "a");
}

TEST(Tokenizer, SpecialTokensAreLeftOutOfTextOnRequest) {
  const Tokenizer tokenizer = SmallTokenizer();
  EXPECT_EQ(tokenizer.Decode(Ids{259, 'a', 260}), "<s>a<think>");
  EXPECT_EQ(tokenizer.Decode(Ids{259, 'a', 260}, /*skip_special=*/true), "a<think>");
  EXPECT_TRUE(tokenizer.IsSpecial(259));
  EXPECT_FALSE(tokenizer.IsSpecial(260));
}

TEST(Tokenizer, TokensAreFoundAsTheFileSpellsThem) {
  const Tokenizer tokenizer = SmallTokenizer();
  EXPECT_EQ(tokenizer.Find("<s>"), 259);
  EXPECT_EQ(tokenizer.Find("hell"), 258);
  EXPECT_EQ(tokenizer.Find("\xC4\xA0"), ' ');  // U+0120
  EXPECT_EQ(tokenizer.Find("hello"), std::nullopt);
}

TEST(Tokenizer, AByteOutsideTheVocabularyIsAnError) {
  Json json = Small();
  json["model"]["vocab"].erase("x");
  const auto tokenizer = Parsed(json);
  ASSERT_TRUE(tokenizer.ok());
  const auto ids = tokenizer->Encode("axb", Special::kParse);
  ASSERT_FALSE(ids.ok());
  EXPECT_NE(ids.status().message().find("0x78"), std::string::npos) << ids.status().message();
}

TEST(Tokenizer, ATextOfTooManyTokensIsNotEncodedToItsEnd) {
  const Tokenizer tokenizer = SmallTokenizer();
  EXPECT_EQ(tokenizer.Encode("a b ", Special::kAsText, 4)->size(), 4u);
  for (const char* text : {"a b c", "abcde", "a b \xFF", "a b c d \xFF c <s>"}) {
    const auto ids = tokenizer.Encode(text, Special::kParse, 4);
    ASSERT_FALSE(ids.ok()) << text;
    EXPECT_EQ(ids.status().code(), Code::kTooLarge);
    EXPECT_EQ(ids.status().message(), "the text has more than 4 tokens");
  }
}

TEST(Tokenizer, AMissingFileIsNamed) {
  const auto tokenizer = Tokenizer::Load("/no/such/folder");
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(tokenizer.status().code(), Code::kNotFound);
  EXPECT_NE(tokenizer.status().message().find("/no/such/folder"), std::string::npos);
}

struct Hostile {
  const char* place;  // a JSON pointer into Small()
  const char* value;
  const char* message;
};

class TokenizerHostile : public testing::TestWithParam<Hostile> {};

TEST_P(TokenizerHostile, OneSentenceSaysWhatIsWrongAndWhere) {
  Json json = Small();
  json[Json::json_pointer(GetParam().place)] = Json::parse(GetParam().value);
  const auto tokenizer = Parsed(json);
  ASSERT_FALSE(tokenizer.ok());
  const std::string& message = tokenizer.status().message();
  EXPECT_EQ(message.find("test.json: "), 0u) << message;
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    , TokenizerHostile,
    testing::Values(
        Hostile{"", "[]", "a array, wanted an object"},
        Hostile{"/model", "null", "\"model\" is missing"},
        Hostile{"/model/type", "\"Unigram\"", "model of type \"Unigram\""},
        Hostile{"/model/type", "7", "model of type none"},
        Hostile{"/model/vocab", "[]", "\"vocab\" is missing or no object"},
        Hostile{"/model/vocab/he", "255", "the id 255 is given to"},
        Hostile{"/model/vocab/he", "-1", "the id -1, wanted 0 to 5139"},
        Hostile{"/model/vocab/he", "2147483648", "the id 2147483648"},
        Hostile{"/model/vocab/he", "18446744073709551615", "the id 18446744073709551615"},
        Hostile{"/model/vocab/he", "5140", "the id 5140, wanted 0 to 5139"},  // 4 * 261 + 4096
        Hostile{"/model/vocab/he", "1.5", "a number for an id, wanted an integer"},
        Hostile{"/model/vocab/he", "\"1\"", "a string for an id"},
        Hostile{"/model/vocab/", "300", "an empty token"},
        Hostile{"/model/merges", "{}", "\"merges\" is missing or no array"},
        Hostile{"/model/merges/1", "\"h\"", "model.merges[1] is neither"},
        Hostile{"/model/merges/1", "\"h e l\"", "model.merges[1] is neither"},
        Hostile{"/model/merges/1", "\" e\"", "model.merges[1] is neither"},
        Hostile{"/model/merges/1", "[\"h\", \"e\", \"l\"]", "model.merges[1] is neither"},
        Hostile{"/model/merges/1", "[\"h\", \"\"]", "model.merges[1] is neither"},
        Hostile{"/model/merges/1", "5", "model.merges[1] is neither"},
        Hostile{"/model/merges/1", "\"zz e\"", "model.merges[1] needs \"zz\""},
        Hostile{"/model/merges/1", "\"e h\"", "model.merges[1] needs \"eh\""},
        Hostile{"/model/dropout", "0.1", "\"dropout\""},
        Hostile{"/model/byte_fallback", "true", "\"byte_fallback\""},
        Hostile{"/model/ignore_merges", "1", "\"ignore_merges\" is a number"},
        Hostile{"/model/end_of_word_suffix", "\"</w>\"", "\"end_of_word_suffix\""},
        Hostile{"/normalizer", "{\"type\": \"NFC\"}", "normalizer of type \"NFC\""},
        Hostile{"/decoder", "null", "decoder of type none"},
        Hostile{"/decoder", "{\"type\": \"Metaspace\"}", "decoder of type \"Metaspace\""},
        Hostile{"/pre_tokenizer", "null", "pre_tokenizer is a null"},
        Hostile{"/added_tokens", "{}", "\"added_tokens\" is no array"},
        Hostile{"/added_tokens/0", "3", "added_tokens[0] is a number"},
        Hostile{"/added_tokens/0/id", "null", "added_tokens[0]: \"id\" is missing"},
        Hostile{"/added_tokens/0/id", "5", "the id 5 is given to"},
        Hostile{"/added_tokens/0/id", "99999999", "the id 99999999"},
        Hostile{"/added_tokens/0/content", "\"\"", "\"content\" of 0 bytes"},
        Hostile{"/added_tokens/0/content", "\"he\"", "\"he\" has the id 259, but 256 before"},
        Hostile{"/added_tokens/0/lstrip", "true", "\"lstrip\" true"},
        Hostile{"/added_tokens/0/special", "\"yes\"", "\"special\" is a string"},
        Hostile{"/added_tokens/2", R"({"id": 259, "content": "<s>"})", "has \"<s>\" twice"}));

TEST(Tokenizer, DepthAndBrokenJsonAreRefused) {
  for (const std::string& json :
       {std::string(100000, '['), std::string("{\"a\": "), std::string("\xFF"), std::string()}) {
    const auto tokenizer = Tokenizer::Parse(json, "test.json");
    ASSERT_FALSE(tokenizer.ok());
    EXPECT_EQ(tokenizer.status().message().find("test.json"), 0u) << tokenizer.status().message();
  }
}

TEST(Tokenizer, AnAddedTokenOfAnyLengthOverTheLimitIsRefused) {
  Json json = Small();
  json["added_tokens"][0]["content"] = std::string(257, 'a');
  EXPECT_FALSE(Parsed(json).ok());
  json["added_tokens"][0]["content"] = std::string(256, 'a');
  EXPECT_TRUE(Parsed(json).ok());
}

}  // namespace
}  // namespace mm01
