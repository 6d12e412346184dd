// The recurrence of lightning.h, in double. For tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace mm01 {

// q, k, v: [T, H, K]; slope: [H]; state: [H, K, V], updated. Returns out [T, H, V].
inline std::vector<double> ReferenceLightning(std::span<const float> q, std::span<const float> k,
                                              std::span<const float> v,
                                              std::span<const float> slope, int64_t dim,
                                              std::vector<double>& state) {
  const auto heads = static_cast<int64_t>(slope.size());
  const int64_t rows = static_cast<int64_t>(q.size()) / (heads * dim);
  std::vector<double> out(q.size(), 0.0);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const double decay = std::exp(-static_cast<double>(slope[static_cast<size_t>(h)]));
      const int64_t at = (t * heads + h) * dim;
      double* s = state.data() + h * dim * dim;
      for (int64_t i = 0; i < dim; ++i) {
        const double ki = k[static_cast<size_t>(at + i)], qi = q[static_cast<size_t>(at + i)];
        for (int64_t j = 0; j < dim; ++j) {
          double& cell = s[i * dim + j];
          cell = decay * cell + ki * static_cast<double>(v[static_cast<size_t>(at + j)]);
          out[static_cast<size_t>(at + j)] += qi * cell;
        }
      }
    }
  }
  return out;
}

}  // namespace mm01
