// The formulas of norm_backward.h for one row, in double. For tests.
#pragma once

#include <cmath>
#include <vector>

namespace mm01 {

struct GatedNormReference {
  using Doubles = std::vector<double>;

  Doubles x, gate, weight;  // gate may be empty: then it is a plain norm
  double eps;

  Doubles Pass() const {
    Doubles out = weight;
    for (size_t i = 0; i < x.size(); ++i) out[i] *= x[i] * Root() * Opening(i);
    return out;
  }

  Doubles d_x, d_gate, d_weight;  // of Backward
  void Backward(const Doubles& d_out) {
    d_x = d_gate = d_weight = Doubles(x.size());
    const double root = Root();
    double mean = 0.0;
    for (size_t i = 0; i < x.size(); ++i) mean += weight[i] * d_out[i] * Opening(i) * x[i];
    mean /= static_cast<double>(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const double dy = d_out[i] * Opening(i);
      d_x[i] = root * weight[i] * dy - x[i] * root * root * root * mean;
      d_weight[i] = dy * x[i] * root;
      d_gate[i] = d_out[i] * weight[i] * x[i] * root * Opening(i) * (1.0 - Opening(i));
    }
  }

 private:
  double Root() const {
    double squares = 0.0;
    for (const double v : x) squares += v * v;
    return 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  }
  double Opening(size_t i) const { return gate.empty() ? 1.0 : 1.0 / (1.0 + std::exp(-gate[i])); }
};

}  // namespace mm01
