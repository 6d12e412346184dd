// UTF-8 as Unicode 15 table 3-7 has it: no surrogates, no overlong forms, nothing over U+10FFFF.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mm01 {

enum class Utf8Kind {
  kValid,       // one code point
  kInvalid,     // a maximal subpart: the bytes that one U+FFFD stands for
  kIncomplete,  // the text ends where more bytes could still make a code point
};

struct Utf8Step {
  Utf8Kind kind;
  size_t length;  // bytes, >= 1
};

// What `text` (not empty) starts with.
Utf8Step NextUtf8(std::string_view text);

// The bytes of the longest valid beginning of `text`. O(n).
size_t ValidUtf8Prefix(std::string_view text);

// The code point that `text` starts with, which has to be valid, and its length in bytes.
struct CodePoint {
  char32_t value;
  size_t length;
};
CodePoint DecodeUtf8(std::string_view text);

// `c` is at most 0x10FFFF and no surrogate.
void AppendUtf8(char32_t c, std::string& out);

}  // namespace mm01
