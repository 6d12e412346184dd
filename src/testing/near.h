// How far two arrays are apart, in double. For tests only.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <ranges>
#include <type_traits>

#include "base/check.h"
#include "tensor/dtype.h"

namespace mm01 {

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

inline double ToDouble(bf16 x) {
  return ToFloat(x);
}
template <typename T>
requires std::is_arithmetic_v<T>
double ToDouble(T x) {
  return static_cast<double>(x);
}

// Vectors, spans, arrays, PoisonedVector.
template <typename R>
concept Values = std::ranges::random_access_range<const R> && std::ranges::sized_range<const R>;

// ||got - want|| / ||want||, 2-norms. 0 if both are zero, infinity if `want` alone is, NaN if
// either holds NaN, so that a NaN passes no EXPECT_LE. Arrays of different sizes are a Bug.
template <Values A, Values B>
double RelativeError(const A& got, const B& want) {
  Check(std::ranges::size(got) == std::ranges::size(want), "RelativeError: the sizes differ");
  double difference = 0;
  double norm = 0;
  auto g = std::ranges::begin(got);
  for (const auto& w : want) {
    const double d = ToDouble(*g++) - ToDouble(w);
    difference += d * d;
    norm += ToDouble(w) * ToDouble(w);
  }
  if (difference == 0 && norm == 0) return 0;
  return std::sqrt(difference / norm);
}

// |got_i - want_i| <= tolerance for every i; NaN is near nothing, an infinity only itself. The
// failure names the first element that is too far off, and how many are.
template <Values A, Values B>
void ExpectAllNear(const A& got, const B& want, double tolerance) {
  ASSERT_EQ(std::ranges::size(got), std::ranges::size(want)) << "the sizes differ";
  const std::size_t n = std::ranges::size(got);
  std::size_t num_far = 0;
  std::size_t first = 0;
  for (std::size_t i = n; i-- > 0;) {
    const double g = ToDouble(std::ranges::begin(got)[static_cast<std::ptrdiff_t>(i)]);
    const double w = ToDouble(std::ranges::begin(want)[static_cast<std::ptrdiff_t>(i)]);
    if (g == w || std::abs(g - w) <= tolerance) continue;
    ++num_far;
    first = i;
  }
  if (num_far == 0) return;
  const auto at = static_cast<std::ptrdiff_t>(first);
  ADD_FAILURE() << num_far << " of " << n << " elements are off by more than " << tolerance
                << ", the first is element " << first << ": got "
                << ToDouble(std::ranges::begin(got)[at]) << ", want "
                << ToDouble(std::ranges::begin(want)[at]);
}

}  // namespace mm01
