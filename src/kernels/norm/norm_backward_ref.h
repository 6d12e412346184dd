// The formulas of norm_backward.h for one row, in double. For tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/norm/norm_cases.h"

namespace mm01 {

struct GatedNormReference {
  using Doubles = std::vector<double>;

  Doubles x, gate, weight;  // gate may be empty: then it is a plain norm
  double eps;
  Doubles carried = {};  // the gradient of a residual; may be empty
  double alpha = 1.0;
  bool of_norm = true;

  Doubles Pass() const {
    Doubles out = weight;
    for (size_t i = 0; i < x.size(); ++i) out[i] *= x[i] * Root() * Opening(i);
    return out;
  }

  Doubles d_x, d_gate, d_weight;  // of Backward
  void Backward(Doubles d_out) {
    for (size_t i = 0; of_norm && i < carried.size(); ++i) d_out[i] += alpha * carried[i];
    d_x = d_gate = d_weight = Doubles(x.size());
    const double root = Root();
    double mean = 0.0;
    for (size_t i = 0; i < x.size(); ++i) mean += weight[i] * d_out[i] * Opening(i) * x[i];
    mean /= static_cast<double>(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const double dy = d_out[i] * Opening(i);
      d_x[i] = root * weight[i] * dy - x[i] * root * root * root * mean;
      if (!of_norm && !carried.empty()) d_x[i] += alpha * carried[i];
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

// The gradients of all rows; d_weight is added to ones.
struct NormGradients {
  using Doubles = std::vector<double>;
  using Floats = std::vector<float>;

  Doubles d_x, d_gate, d_weight;

  NormGradients(NormKind kind, int64_t rows, const Floats& x, const Floats& weight,
                const Floats& gate, const Floats& d_out, const Floats& carried)
      : d_weight(weight.size(), 1.0) {
    const auto width = std::ssize(weight);
    const bool gated = kind == NormKind::kGated, carries = !gated && kind != NormKind::kPlain;
    for (int64_t t = 0; t < rows; ++t) {
      const auto row = [&](const Floats& m) {
        return Doubles(m.begin() + t * width, m.begin() + (t + 1) * width);
      };
      GatedNormReference r{row(x),
                           gated ? row(gate) : Doubles(),
                           Doubles(weight.begin(), weight.end()),
                           gated ? 1e-6 : 1e-5,
                           carries ? row(carried) : Doubles(),
                           static_cast<double>(kCarriedAlpha),
                           kind == NormKind::kCarriesNorm};
      r.Backward(row(d_out));
      d_x.insert(d_x.end(), r.d_x.begin(), r.d_x.end());
      d_gate.insert(d_gate.end(), r.d_gate.begin(), r.d_gate.end());
      for (size_t i = 0; i < d_weight.size(); ++i) d_weight[i] += r.d_weight[i];
    }
  }
};

}  // namespace mm01
