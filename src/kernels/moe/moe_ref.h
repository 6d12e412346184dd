// The mixture of experts from its formula, in double, token by token. For tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace mm01 {

struct ReferenceRoute {
  std::vector<int32_t> experts;
  std::vector<double> weights;
};

// As the released code has it: softmax over all experts, the k largest, divided by their sum.
inline ReferenceRoute RouteByFormula(std::span<const float> logits, int64_t k) {
  std::vector<double> p;
  for (const float x : logits) p.push_back(std::exp(static_cast<double>(x)));
  const double all = std::accumulate(p.begin(), p.end(), 0.0);
  std::vector<int32_t> order(p.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return p[static_cast<size_t>(a)] > p[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(k));
  double kept = 0.0;
  for (const int32_t e : order) kept += p[static_cast<size_t>(e)] / all;
  ReferenceRoute route{order, {}};
  for (const int32_t e : order) route.weights.push_back(p[static_cast<size_t>(e)] / all / kept);
  return route;
}

// w2 (SiLU(w1 x) * w3 x).  x [D]; w1, w3 [F, D]; w2 [D, F].
inline std::vector<double> ReferenceExpert(std::span<const float> x, std::span<const float> w1,
                                           std::span<const float> w2, std::span<const float> w3) {
  const size_t width = x.size(), inner = w1.size() / width;
  std::vector<double> hidden(inner), out(width, 0.0);
  for (size_t f = 0; f < inner; ++f) {
    double gate = 0.0, up = 0.0;
    for (size_t i = 0; i < width; ++i) {
      gate += static_cast<double>(w1[f * width + i]) * static_cast<double>(x[i]);
      up += static_cast<double>(w3[f * width + i]) * static_cast<double>(x[i]);
    }
    hidden[f] = gate / (1.0 + std::exp(-gate)) * up;
  }
  for (size_t i = 0; i < width; ++i) {
    for (size_t f = 0; f < inner; ++f) out[i] += static_cast<double>(w2[i * inner + f]) * hidden[f];
  }
  return out;
}

}  // namespace mm01
