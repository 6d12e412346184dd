// The shapes that tests and benches walk.
#pragma once

#include <cstdint>

namespace mm01 {

struct MoeCase {
  const char* name;
  int64_t tokens, experts, k;
  int64_t width = 24, inner = 40;
};

inline constexpr MoeCase kMoeCases[] = {
    {"one token, most experts empty", 1, 8, 2}, {"two of thirty-two", 37, 32, 2},
    {"one of one: a dense layer", 5, 1, 1},     {"all of four", 9, 4, 4},
    {"many tokens an expert", 130, 3, 2},       {"widths off the panels", 6, 4, 2, 33, 17},
};

}  // namespace mm01
