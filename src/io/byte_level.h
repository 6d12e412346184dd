// The alphabet of byte-level BPE: tokenizer.json spells each byte as one printable character.
//
// The bytes '!'..'~', 0xA1..0xAC and 0xAE..0xFF are the characters of the same number; the other
// 68, in ascending order, are U+0100, U+0101, ...: a space is U+0120 ("Ġ"), a newline U+010A ("Ċ").
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mm01 {

// The character that spells `byte`, as UTF-8.
std::string SpellByte(uint8_t byte);

// The bytes that `spelling` (valid UTF-8) stands for; none if it has a character that spells no
// byte.
std::optional<std::string> UnspellBytes(std::string_view spelling);

}  // namespace mm01
