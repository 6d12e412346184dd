#include "io/utf8.h"

#include <cstdint>
#include <cstring>

#include "base/check.h"

namespace mm01 {
namespace {

uint8_t Byte(char c) {
  return static_cast<uint8_t>(c);
}

// Which second bytes may follow a lead byte, and how many bytes the code point has (0: no lead).
struct Lead {
  size_t length;
  uint8_t second_min, second_max;
};

Lead LeadOf(uint8_t b) {
  if (b < 0x80) return {1, 0, 0};
  if (b < 0xC2) return {0, 0, 0};
  if (b < 0xE0) return {2, 0x80, 0xBF};
  if (b == 0xE0) return {3, 0xA0, 0xBF};
  if (b == 0xED) return {3, 0x80, 0x9F};
  if (b < 0xF0) return {3, 0x80, 0xBF};
  if (b == 0xF0) return {4, 0x90, 0xBF};
  if (b < 0xF4) return {4, 0x80, 0xBF};
  if (b == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Step NextUtf8(std::string_view text) {
  const Lead lead = LeadOf(Byte(text[0]));
  if (lead.length <= 1) return {lead.length == 1 ? Utf8Kind::kValid : Utf8Kind::kInvalid, 1};
  uint8_t min = lead.second_min, max = lead.second_max;
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {Utf8Kind::kIncomplete, i};
    if (Byte(text[i]) < min || Byte(text[i]) > max) return {Utf8Kind::kInvalid, i};
    min = 0x80;
    max = 0xBF;
  }
  return {Utf8Kind::kValid, lead.length};
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t word;
    if (at + sizeof word <= text.size()) {
      std::memcpy(&word, text.data() + at, sizeof word);
      if ((word & 0x8080808080808080u) == 0) {
        at += sizeof word;
        continue;
      }
    }
    const Utf8Step step = NextUtf8(text.substr(at));
    if (step.kind != Utf8Kind::kValid) break;
    at += step.length;
  }
  return at;
}

CodePoint DecodeUtf8(std::string_view text) {
  Check(!text.empty() && NextUtf8(text).kind == Utf8Kind::kValid, "text is not UTF-8");
  const size_t length = LeadOf(Byte(text[0])).length;
  if (length == 1) return {static_cast<char32_t>(text[0]), 1};
  char32_t value = Byte(text[0]) & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) value = value << 6 | (Byte(text[i]) & 0x3Fu);
  return {value, length};
}

void AppendUtf8(char32_t c, std::string& out) {
  const auto put = [&out](char32_t byte) { out += static_cast<char>(static_cast<uint8_t>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

}  // namespace mm01
