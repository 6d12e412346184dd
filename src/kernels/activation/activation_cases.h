// The shapes that tests and benches walk.
#pragma once

#include <cstdint>

namespace mm01 {

struct ActivationCase {
  int64_t rows, width;
};

inline constexpr ActivationCase kActivationCases[] = {{1, 1},  {3, 15},  {5, 16},
                                                      {2, 17}, {7, 101}, {4, 9216}};

}  // namespace mm01
