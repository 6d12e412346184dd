#include "io/byte_level.h"

#include <array>

#include "io/utf8.h"

namespace mm01 {
namespace {

constexpr size_t kNumChars = 0x144;  // 256 + the 68 bytes that do not spell themselves

struct Alphabet {
  std::array<char32_t, 256> of_byte{};
  std::array<int, kNumChars> of_char{};
};

constexpr Alphabet MakeAlphabet() {
  Alphabet a;
  a.of_char.fill(-1);
  char32_t next = 0x100;
  for (size_t b = 0; b < 256; ++b) {
    const bool itself = (b >= '!' && b <= '~') || (b >= 0xA1 && b != 0xAD);
    a.of_byte[b] = itself ? static_cast<char32_t>(b) : next++;
    a.of_char[a.of_byte[b]] = static_cast<int>(b);
  }
  return a;
}

constexpr Alphabet kAlphabet = MakeAlphabet();
static_assert(kAlphabet.of_byte[' '] == 0x120 && kAlphabet.of_char[kNumChars - 1] == 0xAD);

}  // namespace

std::string SpellByte(uint8_t byte) {
  std::string s;
  AppendUtf8(kAlphabet.of_byte[byte], s);
  return s;
}

std::optional<std::string> UnspellBytes(std::string_view spelling) {
  std::string bytes;
  while (!spelling.empty()) {
    const CodePoint c = DecodeUtf8(spelling);
    if (c.value >= kNumChars || kAlphabet.of_char[c.value] < 0) return std::nullopt;
    bytes += static_cast<char>(kAlphabet.of_char[c.value]);
    spelling.remove_prefix(c.length);
  }
  return bytes;
}

}  // namespace mm01
