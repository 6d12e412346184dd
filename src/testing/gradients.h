// Gradients of references in double against finite differences. For tests only.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "testing/near.h"

namespace mm01 {

// n standard normal numbers that do not round to float32.
inline std::vector<double> RandomDoubles(uint64_t stream, int64_t n) {
  std::vector<double> x;
  for (int64_t i = 0; i < n; ++i) x.push_back(RandomNormal(2, stream, static_cast<uint64_t>(i)));
  return x;
}

inline std::vector<float> ToFloats(const std::vector<double>& x) {
  return {x.begin(), x.end()};
}

inline std::vector<double> ToDoubles(const std::vector<float>& x) {
  return {x.begin(), x.end()};
}

inline double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  Check(a.size() == b.size(), "Dot: the sizes differ");
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// `gradient` is that of loss() by each element of x, which loss reads.
template <typename Loss>
void ExpectGradient(Loss&& loss, std::vector<double>& x, const std::vector<double>& gradient,
                    double tolerance = 1e-7) {
  constexpr double kStep = 1e-5;
  std::vector<double> slope;
  for (double& element : x) {
    const double old = element;
    element = old + kStep;
    const double above = loss();
    element = old - kStep;
    slope.push_back((above - loss()) / (2 * kStep));
    element = old;
  }
  EXPECT_LE(RelativeError(gradient, slope), tolerance);
}

}  // namespace mm01
