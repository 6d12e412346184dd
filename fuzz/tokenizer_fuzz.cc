// The first byte chooses: even, the rest is a tokenizer.json, and what parses must encode and
// stream a fixed text; odd, the rest is text for a small tokenizer with one of four pre_tokenizers,
// and must come back unchanged, whole and as a valid UTF-8 stream.
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/json.h"
#include "io/byte_level.h"
#include "io/detokenizer.h"
#include "io/tokenizer.h"
#include "io/utf8.h"

namespace mm01 {
namespace {

// A tail of every pre_tokenizer here.
constexpr std::string_view kByteLevel =
    R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})";

constexpr std::array<std::string_view, 4> kPreTokenizers = {
    R"({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": false}]})",
    R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": "Isolated", "pattern":
        {"Regex": "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}}, )",
    R"({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
        {"type": "Split", "behavior": "MergedWithNext", "pattern": {"String": " "}}, )",
    R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": "Contiguous",
        "pattern": {"Regex": "(?<=\\s)\\w{2,}?|(?i:ab)+$"}}, )"};

Tokenizer Small(std::string_view pretokenizer) {
  Json json = Json::parse(R"({
    "added_tokens": [{"id": 256, "content": "<s>", "special": true},
                     {"id": 257, "content": "<s><t>", "normalized": true}],
    "decoder": {"type": "ByteLevel"},
    "model": {"merges": ["a b", "a a", "aa ab", "Ã ©", "Ġ a"]}})");
  Json& vocab = json["model"]["vocab"];
  for (int b = 0; b < 256; ++b) vocab[SpellByte(static_cast<uint8_t>(b))] = b;
  int32_t id = 258;
  for (const char* token : {"ab", "aa", "aaab", "Ã©", "Ġa"}) vocab[token] = id++;
  std::string pre(pretokenizer);
  if (pre.ends_with(", ")) pre += kByteLevel;
  json["pre_tokenizer"] = Json::parse(pre);
  return Tokenizer::Parse(json.dump(), "small").value();
}

void Streams(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  StreamingDetokenizer stream(tokenizer);
  for (const int32_t id : ids) {
    const std::string part = stream.Push(id);
    Check(ValidUtf8Prefix(part) == part.size(), "the stream is UTF-8");
  }
  Check(stream.Finish().size() <= 3, "at most one code point is held back");
}

void FuzzText(size_t which, std::string_view text) {
  static const std::array<Tokenizer, 4> kTokenizers = {
      Small(kPreTokenizers[0]), Small(kPreTokenizers[1]), Small(kPreTokenizers[2]),
      Small(kPreTokenizers[3])};
  const Tokenizer& tokenizer = kTokenizers[which];
  for (const auto special : {Tokenizer::Special::kAsText, Tokenizer::Special::kParse}) {
    const auto ids = tokenizer.Encode(text, special);
    Check(ids.ok(), ids.status().message());
    Check(tokenizer.Decode(*ids) == text, "text comes back");
    for (const int32_t id : *ids) {
      Check(special == Tokenizer::Special::kParse || !tokenizer.IsSpecial(id),
            "text makes no special token");
    }
    Streams(tokenizer, *ids);
  }
  std::vector<int32_t> random;
  for (const char c : text) random.push_back((static_cast<uint8_t>(c) * 37 + 5) % 300 - 10);
  Streams(tokenizer, random);
}

void FuzzJson(std::string_view json) {
  const auto tokenizer = Tokenizer::Parse(json, "fuzz");
  if (!tokenizer.ok()) {
    Check(tokenizer.status().message().starts_with("fuzz"), "an error names its place");
    return;
  }
  std::string text = "The <s>quick</s> brown fox's 1234  \n\n";
  text.append("\xFF\xE2\x82 caf\xC3\xA9").append(300, 'a').append(300, ' ');
  text += json.substr(0, 500);
  for (const auto special : {Tokenizer::Special::kAsText, Tokenizer::Special::kParse}) {
    const auto ids = tokenizer->Encode(text, special);
    if (ids.ok()) Streams(*tokenizer, *ids);
  }
}

}  // namespace
}  // namespace mm01

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) {
    mm01::FuzzJson(rest);
  } else {
    mm01::FuzzText(data[0] / 2 % 4, rest);
  }
  return 0;
}
