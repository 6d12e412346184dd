// The formulas of activation_backward.h for one number, in double. For tests.
#pragma once

#include <cmath>

namespace mm01 {

inline double ReferenceSilu(double x) {
  return x / (1.0 + std::exp(-x));
}

inline double ReferenceSiluSlope(double x) {
  const double s = 1.0 / (1.0 + std::exp(-x));
  return s + x * s * (1.0 - s);
}

struct SwiGluGradients {
  double d_gate, d_up;
};

inline SwiGluGradients ReferenceSwiGluBackward(double gate, double up, double dy) {
  return {dy * up * ReferenceSiluSlope(gate), dy * ReferenceSilu(gate)};
}

}  // namespace mm01
