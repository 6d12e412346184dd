// The shapes that tests and benches walk.
#pragma once

#include <cstdint>

namespace mm01 {

struct NormCase {
  int64_t rows, width;
};

inline constexpr NormCase kNormCases[] = {{1, 1},   {1, 15},  {7, 16},  {8, 17},
                                          {9, 127}, {65, 64}, {3, 257}, {2, 6144}};

}  // namespace mm01
