// The formula of attention.h, in double. For tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace mm01 {

struct AttentionReference {
  std::vector<double> out;  // [H, V]
  std::vector<double> lse;  // [H]
};

// One row q [H, K] over keys begin .. end-1 of k, v [S, G, K].
inline AttentionReference ReferenceAttention(std::span<const float> q, std::span<const float> k,
                                             std::span<const float> v, int64_t kv_heads,
                                             int64_t dim, int64_t begin, int64_t end) {
  const int64_t heads = static_cast<int64_t>(q.size()) / dim;
  AttentionReference result{std::vector<double>(q.size(), 0.0), {}};
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t g = h / (heads / kv_heads);
    const auto at = [&](int64_t s) { return (s * kv_heads + g) * dim; };
    std::vector<double> score;
    for (int64_t s = begin; s < end; ++s) {
      double dot = 0.0;
      for (int64_t i = 0; i < dim; ++i) {
        dot += static_cast<double>(q[static_cast<size_t>(h * dim + i)]) *
               static_cast<double>(k[static_cast<size_t>(at(s) + i)]);
      }
      score.push_back(dot / std::sqrt(static_cast<double>(dim)));
    }
    if (score.empty()) {
      result.lse.push_back(-INFINITY);
      continue;
    }
    const double top = *std::max_element(score.begin(), score.end());
    double sum = 0.0;
    for (const double x : score) sum += std::exp(x - top);
    for (int64_t s = begin; s < end; ++s) {
      const double p = std::exp(score[static_cast<size_t>(s - begin)] - top) / sum;
      for (int64_t i = 0; i < dim; ++i) {
        result.out[static_cast<size_t>(h * dim + i)] +=
            p * static_cast<double>(v[static_cast<size_t>(at(s) + i)]);
      }
    }
    result.lse.push_back(top + std::log(sum));
  }
  return result;
}

}  // namespace mm01
