// The formulas of norm.h, in double. For tests.
#pragma once

#include <cmath>
#include <span>
#include <vector>

namespace mm01 {

inline std::vector<double> ReferenceAdd(std::span<const float> x, std::span<const float> branch,
                                        double alpha, double beta) {
  std::vector<double> sum;
  for (size_t i = 0; i < x.size(); ++i) {
    sum.push_back(alpha * static_cast<double>(x[i]) + beta * static_cast<double>(branch[i]));
  }
  return sum;
}

// One row.
inline std::vector<double> ReferenceNorm(std::span<const double> x, std::span<const float> weight,
                                         double eps) {
  double squares = 0.0;
  for (const double v : x) squares += v * v;
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  std::vector<double> out;
  for (size_t i = 0; i < x.size(); ++i)
    out.push_back(x[i] * scale * static_cast<double>(weight[i]));
  return out;
}

inline std::vector<double> ReferenceGatedNorm(std::span<const double> x,
                                              std::span<const float> gate,
                                              std::span<const float> weight, double eps) {
  std::vector<double> out = ReferenceNorm(x, weight, eps);
  for (size_t i = 0; i < out.size(); ++i) out[i] /= 1.0 + std::exp(-static_cast<double>(gate[i]));
  return out;
}

}  // namespace mm01
