// The formula of rope.h, in double, with angles in long double. For tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace mm01 {

// theta^(-2j / R), rounded to float32 as the released code holds it.
inline float ReferenceFrequency(double theta, int64_t j, int64_t rotary) {
  return static_cast<float>(
      std::pow(static_cast<long double>(theta), -2.0L * static_cast<long double>(j) / rotary));
}

inline long double ReferenceAngle(int64_t position, double theta, int64_t j, int64_t rotary) {
  return static_cast<long double>(position) *
         static_cast<long double>(ReferenceFrequency(theta, j, rotary));
}

// One head.
inline std::vector<double> ReferenceRope(std::span<const float> x, int64_t position, double theta,
                                         int64_t rotary) {
  std::vector<double> out(x.begin(), x.end());
  for (int64_t j = 0; j < rotary / 2; ++j) {
    const long double angle = ReferenceAngle(position, theta, j, rotary);
    const double c = static_cast<double>(std::cos(angle)), s = static_cast<double>(std::sin(angle));
    const auto a = static_cast<size_t>(j), b = static_cast<size_t>(j + rotary / 2);
    out[a] = static_cast<double>(x[a]) * c - static_cast<double>(x[b]) * s;
    out[b] = static_cast<double>(x[b]) * c + static_cast<double>(x[a]) * s;
  }
  return out;
}

}  // namespace mm01
