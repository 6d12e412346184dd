// The formulas of activation.h, in double. For tests.
#pragma once

#include <cmath>

namespace mm01 {

inline double ReferenceSigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}
inline double ReferenceSilu(double x) {
  return x * ReferenceSigmoid(x);
}
inline double ReferenceSwiGlu(double gate, double up) {
  return ReferenceSilu(gate) * up;
}
inline double ReferenceBlend(double x, double shared, double logit) {
  const double c = ReferenceSigmoid(logit);
  return (1.0 - c) * x + c * shared;
}

}  // namespace mm01
