#include "infer/json_filter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/json.h"
#include "base/sanitized.h"
#include "io/tokenizer.h"

namespace mm01::infer {
namespace {

constexpr int32_t kEnd = 3;

const Tokenizer& NanoTokenizer() {
  static const Tokenizer tokenizer = Tokenizer::Load(MM01_SOURCE_DIR "/models/nano").value();
  return tokenizer;
}

std::vector<int32_t> Tokens(std::string_view text) {
  return NanoTokenizer().Encode(text, Tokenizer::Special::kAsText).value();
}

std::shared_ptr<const TokenTrie> NanoTrie() {
  static const auto trie = MakeTokenTrie(NanoTokenizer(), NanoTokenizer().size());
  return trie;
}

std::shared_ptr<const Grammar> Compiled(const std::string& schema) {
  auto grammar = CompileSchema(Json::parse(schema));
  EXPECT_TRUE(grammar.ok()) << schema << ": " << grammar.status().message();
  return grammar.value();
}

struct Example {
  const char* schema;
  std::vector<const char*> good, bad;
};

TEST(JsonSchema, AllowsWhatItSays) {
  const std::vector<Example> examples = {
      {R"({"type":"boolean"})", {"true", "false"}, {"", "tru", "null", "\"true\"", "true "}},
      {R"({"type":"null"})", {"null"}, {"nul", "0"}},
      {R"({"type":"integer"})", {"0", "-0", "7", "-120"}, {"01", "1.5", "-", "1e3", "+1"}},
      {R"({"type":"number"})", {"0", "1.5", "-2.25e-7", "1E+9"}, {".5", "1.", "e3", "1e999"}},
      {R"({"type":"string"})",
       {R"("")", R"("a b")", R"("\"\\\n\u00e9")", "\"\xC3\xA9\xF0\x9F\x98\x80\""},
       {"\"", R"("\x")", R"("\ud800")", "\"\xC3\"", "\"\n\"", "\"\xED\xA0\x80\""}},
      {R"({"type":"string","minLength":2,"maxLength":3})",
       {R"("ab")", R"("abc")", "\"\xC3\xA9\xC3\xA9\""},
       {R"("a")", R"("abcd")", R"("")"}},
      {R"({"type":["string","null"]})", {R"("x")", "null"}, {"1"}},
      {R"({"enum":["red","green",3,null,{"a":1}]})",
       {R"("red")", R"("green")", "3", "null", R"({"a":1})"},
       {R"("re")", "33", R"("blue")"}},
      {R"({"const":[1,"x"]})", {R"([1,"x"])"}, {"[1]"}},
      {R"({"type":"array","items":{"type":"integer"}})",
       {"[]", "[1]", "[1,2, 3]"},
       {"[", "[1,]", "[,1]", "[1 2]", "[\"a\"]"}},
      {R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":3})",
       {"[1,2]", "[1,2,3]"},
       {"[]", "[1]", "[1,2,3,4]"}},
      {R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":false})",
       {"[]", "[1]", R"([1,"a"])"},
       {R"(["a"])", R"([1,"a",2])"}},
      {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"},
          "c":{"type":"integer"}},"required":["b"]})",
       {R"({"b":1})", R"({"a":1,"b":2})", R"({"a": 1, "b": 2, "c": 3})", R"({"b":2,"c":3})"},
       {"{}", R"({"a":1})", R"({"b":1,"a":2})", R"({"b":1,})", R"({,"b":1})", R"({"b":1,"d":2})"}},
      {R"({"type":"object","additionalProperties":{"type":"boolean"}})",
       {"{}", R"({"x":true,"y":false})"},
       {R"({"x":1})"}},
      {R"({"type":"object"})", {"{}", R"({"a":[1,{"b":null}]})"}, {"[]", "{a:1}"}},
      {"{}", {"1", "[]", R"({"a":"b"})"}, {"", "x"}},
      {R"({"anyOf":[{"type":"integer"},{"type":"string"}]})", {"1", R"("a")"}, {"null"}},
      {R"({"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{
          "v":{"type":"integer"},"next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},
          "required":["v","next"]}}})",
       {R"({"v":1,"next":null})", R"({"v":1,"next":{"v":2,"next":null}})"},
       {R"({"v":1})", R"({"v":1,"next":{"v":2}})"}},
      {R"({"type":"integer","minimum":-12,"maximum":105})",
       {"-12", "-1", "0", "9", "10", "99", "100", "105"},
       {"-13", "106", "110", "200", "00"}},
      {R"({"type":"integer","exclusiveMinimum":7,"exclusiveMaximum":10})",
       {"8", "9"},
       {"7", "10", "80"}},
      {R"({"type":"integer","minimum":18})", {"18", "19", "100", "123456"}, {"17", "9", "-18"}},
  };
  for (const Example& e : examples) {
    const auto grammar = Compiled(e.schema);
    for (const char* text : e.good) EXPECT_TRUE(Matches(grammar, text)) << e.schema << text;
    for (const char* text : e.bad) EXPECT_FALSE(Matches(grammar, text)) << e.schema << text;
  }
}

TEST(JsonSchema, EveryIntegerOfARange) {
  for (const auto& [low, high] : std::vector<std::pair<int, int>>{
           {0, 0}, {3, 1234}, {-57, 321}, {-1005, -99}, {99, 101}, {-9, 9}, {1000, 1000}}) {
    const auto grammar = Compiled("{\"type\":\"integer\",\"minimum\":" + std::to_string(low) +
                                  ",\"maximum\":" + std::to_string(high) + "}");
    for (int i = -1500; i <= 1500; ++i) {
      EXPECT_EQ(Matches(grammar, std::to_string(i)), low <= i && i <= high) << i;
    }
  }
}

TEST(JsonSchema, NamesWhatItDoesNotFollow) {
  for (const char* keyword :
       {"pattern", "format", "oneOf", "not", "if", "uniqueItems", "multipleOf", "patternProperties",
        "dependentRequired", "$dynamicRef"}) {
    const auto result =
        CompileSchema({{"type", "object"}, {"properties", {{"a", {{keyword, 1}}}}}});
    EXPECT_EQ(result.status().code(), Code::kUnsupported) << keyword;
    EXPECT_NE(result.status().message().find(keyword), std::string::npos);
    EXPECT_NE(result.status().message().find("#/properties/a"), std::string::npos);
  }
}

TEST(JsonSchema, RefusesWhatIsWrongOrTooLarge) {
  std::string deep = "{}", wide = "{\"enum\":[";
  for (int i = 0; i < 40; ++i) deep = R"({"type":"array","minItems":1,"items":)" + deep + "}";
  for (int i = 0; i < 20000; ++i) wide += std::to_string(i) + ",";
  wide += "1]}";
  for (const std::string& schema :
       {deep,
        wide,
        std::string("1"),
        std::string("[]"),
        std::string(R"({"type":"king"})"),
        std::string(R"({"type":1})"),
        std::string(R"({"enum":[]})"),
        std::string(R"({"enum":1})"),
        std::string(R"({"$ref":"http://x"})"),
        std::string(R"({"$ref":"#/$defs/none"})"),
        std::string(R"({"$ref":"#"})"),
        std::string(R"({"anyOf":[]})"),
        std::string(R"({"type":"object","properties":1})"),
        std::string(R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})"),
        std::string(R"({"type":"string","maxLength":1000000000})"),
        std::string(R"({"type":"string","minLength":-1})"),
        std::string(R"({"type":"string","minLength":3,"maxLength":2})"),
        std::string(
            R"({"type":"array","maxItems":99999,"items":{"type":"array","maxItems":99999}})"),
        std::string(R"({"type":"integer","minimum":5,"maximum":4})"),
        std::string(R"({"type":"integer","minimum":1e300})"),
        std::string(
            R"({"type":"array","items":{"type":"string","minLength":90000},"minItems":90000})")}) {
    EXPECT_FALSE(CompileSchema(Json::parse(schema)).ok()) << schema.substr(0, 200);
  }
}

// Tokens drawn from random logits until the text ends, with a growing wish to close what is open.
std::string Sample(const std::shared_ptr<const Grammar>& grammar, uint32_t seed) {
  const auto filter = MakeGrammarFilter(grammar, NanoTrie(), {}, {kEnd});
  std::mt19937 random(seed);
  std::vector<float> logits(static_cast<size_t>(NanoTokenizer().size()));
  std::string text;
  for (int i = 0; i < 2000; ++i) {
    for (float& x : logits) x = static_cast<float>(random() % 10000);
    filter->Mask(logits);
    if (i > 20) {
      for (const char* closer : {"\"", "}", "]", "<end_of_sentence>"}) {
        logits[static_cast<size_t>(*NanoTokenizer().Find(closer))] += 1e5F;
      }
    }
    const auto token =
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    filter->Accept(token);
    if (token == kEnd) return text;
    text += NanoTokenizer().Bytes(token);
  }
  ADD_FAILURE() << "no end: " << text.substr(0, 300);
  return text;
}

const char* const kSchemas[] = {
    R"({"type":"object"})",
    "{}",
    R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer",
       "minimum":0,"maximum":150},"tags":{"type":"array","items":{"enum":["a","b","c"]},
       "maxItems":4}},"required":["name","age"],"additionalProperties":false})",
    R"({"$ref":"#/$defs/tree","$defs":{"tree":{"type":"object","properties":{
       "value":{"type":"number"},"children":{"type":"array","items":{"$ref":"#/$defs/tree"}}},
       "required":["value","children"]}}})",
    R"({"type":"array","items":{"anyOf":[{"type":"null"},{"type":"string","maxLength":5},
       {"type":"boolean"}]},"minItems":1,"maxItems":10})",
};

void SampleAll(uint32_t count) {
  for (const char* schema : kSchemas) {
    const auto grammar = Compiled(schema);
    for (uint32_t seed = 0; seed < count; ++seed) {
      const std::string text = Sample(grammar, seed);
      ASSERT_TRUE(Json::accept(text)) << schema << seed << text;
      ASSERT_TRUE(Matches(grammar, text)) << schema << seed << text;
    }
  }
}

TEST(JsonFilter, SamplesParseAndValidate) {
  SampleAll(kSanitized ? 6 : 60);
}

TEST(JsonFilterSlow, TenThousandSamplesParseAndValidate) {
  SampleAll(2000);
}

TEST(JsonFilter, LeadsAndEnds) {
  const auto filter = MakeGrammarFilter(Compiled(R"({"type":"boolean"})"), NanoTrie(), {5}, {kEnd});
  const auto allowed = [&] {
    std::vector<float> logits(static_cast<size_t>(NanoTokenizer().size()), 0.0F);
    filter->Mask(logits);
    std::vector<int32_t> tokens;
    for (size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] == 0.0F) tokens.push_back(static_cast<int32_t>(i));
    }
    return tokens;
  };
  EXPECT_EQ(allowed(), std::vector<int32_t>{5});
  filter->Accept(5);
  for (const int32_t token : allowed()) {
    const std::string& bytes = NanoTokenizer().Bytes(token);
    EXPECT_TRUE(std::string("true").starts_with(bytes) || std::string("false").starts_with(bytes));
  }
  for (const int32_t token : Tokens("true")) {
    filter->Accept(token);
  }
  EXPECT_EQ(allowed(), std::vector<int32_t>{kEnd});
  filter->Accept(kEnd);
  EXPECT_EQ(allowed(), std::vector<int32_t>{kEnd});
}

// A mask is what it is token by token, whichever way it was found.
TEST(JsonFilter, MasksAreThoseOfSingleTokens) {
  const auto grammar = Compiled(R"({"type":"object","properties":{"a":{"type":"string"}}})");
  const std::string text = R"({"a": "x y)";
  const auto filter = MakeGrammarFilter(grammar, NanoTrie(), {}, {kEnd});
  std::string read;
  for (const int32_t token : Tokens(text)) {
    filter->Accept(token);
    read += NanoTokenizer().Bytes(token);
    std::vector<float> logits(static_cast<size_t>(NanoTokenizer().size()), 0.0F);
    filter->Mask(logits);
    for (int32_t id = 8; id < NanoTokenizer().size(); ++id) {
      const bool is_allowed = logits[static_cast<size_t>(id)] == 0.0F;
      ASSERT_EQ(is_allowed, CanBegin(grammar, read + NanoTokenizer().Bytes(id)))
          << read << "|" << NanoTokenizer().Bytes(id);
    }
  }
}

}  // namespace
}  // namespace mm01::infer
