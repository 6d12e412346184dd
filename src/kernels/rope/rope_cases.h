// The shapes and positions that tests and benches walk.
#pragma once

#include <cstdint>

namespace mm01 {

struct RopeCase {
  const char* name;
  int64_t heads, dim, rotary;
  double theta;
};

inline constexpr RopeCase kRopeCases[] = {
    {"the released head", 3, 128, 64, 1e7},
    {"all dims turn", 2, 32, 32, 1e4},
    {"an odd number of pairs", 1, 48, 6, 1e6},
    {"no dim turns", 2, 16, 0, 1e7},
};

inline constexpr int64_t kRopePositions[] = {0,      1,         2,         255,
                                             65'537, 1'000'000, 9'999'991, 10'000'000};

}  // namespace mm01
