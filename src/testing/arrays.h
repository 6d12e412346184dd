// Arrays for tests: random ones, and their comparison to the bit.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <ranges>
#include <span>
#include <type_traits>
#include <vector>

#include "base/rng.h"
#include "tensor/dtype.h"
#include "testing/near.h"

namespace mm01 {

// n standard normal numbers, the same for a stream on every machine that has the same libm.
inline std::vector<float> RandomFloats(uint64_t stream, int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    x[static_cast<size_t>(i)] =
        static_cast<float>(RandomNormal(1, stream, static_cast<uint64_t>(i)));
  }
  return x;
}

// The same, rounded to bf16.
inline std::vector<float> RandomBF16s(uint64_t stream, int64_t n) {
  std::vector<float> x = RandomFloats(stream, n);
  for (float& v : x) v = ToFloat(ToBF16(v));
  return x;
}

// Do two arrays hold the same bytes? The failure names the first element that differs.
template <Values A, Values B>
testing::AssertionResult SameBits(const A& got, const B& want) {
  using T = std::ranges::range_value_t<A>;
  static_assert(std::is_same_v<T, std::ranges::range_value_t<B>>);
  if (std::ranges::size(got) != std::ranges::size(want)) {
    return testing::AssertionFailure() << "the sizes differ";
  }
  const T* g = std::ranges::data(got);
  const T* w = std::ranges::data(want);
  const size_t n = std::ranges::size(got);
  if (n == 0 || std::memcmp(g, w, n * sizeof(T)) == 0) return testing::AssertionSuccess();
  size_t i = 0;
  while (std::memcmp(g + i, w + i, sizeof(T)) == 0) ++i;
  return testing::AssertionFailure() << "element " << i << " of " << n << " differs: got "
                                     << ToDouble(g[i]) << ", want " << ToDouble(w[i]);
}

}  // namespace mm01
