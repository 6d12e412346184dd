// The formula of cross_entropy.h, in double. For tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace mm01 {

struct CrossEntropyReference {
  using Doubles = std::vector<double>;

  Doubles x, weight;  // [T, D], [V, D]
  std::vector<int32_t> targets;
  int64_t width, vocab_used;

  Doubles d_x, d_weight;  // of Loss: the gradients of the sum

  double Loss() {
    d_x.assign(x.size(), 0.0);
    d_weight.assign(weight.size(), 0.0);
    const auto w = static_cast<size_t>(width), used = static_cast<size_t>(vocab_used);
    double loss = 0.0;
    for (size_t t = 0; t < targets.size(); ++t) {
      if (targets[t] < 0) continue;
      Doubles logits(used);
      for (size_t v = 0; v < used; ++v) {
        for (size_t i = 0; i < w; ++i) logits[v] += x[t * w + i] * weight[v * w + i];
      }
      const double top = *std::max_element(logits.begin(), logits.end());
      double sum = 0.0;
      for (const double l : logits) sum += std::exp(l - top);
      loss += top + std::log(sum) - logits[static_cast<size_t>(targets[t])];
      for (size_t v = 0; v < used; ++v) {
        const double p = std::exp(logits[v] - top) / sum;
        const double d = p - (static_cast<int32_t>(v) == targets[t] ? 1.0 : 0.0);
        for (size_t i = 0; i < w; ++i) {
          d_x[t * w + i] += d * weight[v * w + i];
          d_weight[v * w + i] += d * x[t * w + i];
        }
      }
    }
    return loss;
  }
};

}  // namespace mm01
