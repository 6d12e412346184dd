// What an untrusted file hands us: numbers that may overflow, names that may hold anything.
#pragma once

#include <fmt/core.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mm01 {

// a + b and a * b, or nothing where the result leaves int64.
constexpr std::optional<int64_t> CheckedAdd(int64_t a, int64_t b) {
  int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

constexpr std::optional<int64_t> CheckedMul(int64_t a, int64_t b) {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// `name` in quotation marks, fit for an error sentence: printable ASCII only, so that no name can
// steer a terminal, and at most 100 bytes of it.
inline std::string Quoted(std::string_view name) {
  constexpr size_t kMaxShown = 100;
  std::string quoted = "\"";
  for (char c : name.substr(0, kMaxShown)) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c >= 0x20 && c <= 0x7e) {
      quoted += c;
    } else {
      quoted += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  return quoted + (name.size() > kMaxShown ? "...\"" : "\"");
}

}  // namespace mm01
