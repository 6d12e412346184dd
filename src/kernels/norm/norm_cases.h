// The shapes that tests and benches walk.
#pragma once

#include <cstdint>

namespace mm01 {

struct NormCase {
  int64_t rows, width;
};

inline constexpr NormCase kNormCases[] = {{1, 1},   {1, 15},  {7, 16},  {8, 17},
                                          {9, 127}, {65, 64}, {3, 257}, {2, 6144}};

// Norms with a gradient: kCarriesNorm and kCarriesInput have a residual around them.
enum class NormKind { kPlain, kGated, kCarriesNorm, kCarriesInput };
inline constexpr NormKind kNormKinds[] = {NormKind::kPlain, NormKind::kGated,
                                          NormKind::kCarriesNorm, NormKind::kCarriesInput};
inline constexpr float kCarriedAlpha = 2.375f;

}  // namespace mm01
