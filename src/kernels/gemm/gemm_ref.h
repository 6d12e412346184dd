// The product from its formula, in double. For tests.
#pragma once

#include <cstdint>
#include <vector>

namespace mm01 {

// x [M, K], w [N, K] -> [M, N]
inline std::vector<double> ReferenceGemm(const std::vector<float>& x, const std::vector<float>& w,
                                         int64_t m, int64_t n, int64_t k) {
  std::vector<double> out(static_cast<size_t>(m * n), 0.0);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t l = 0; l < k; ++l) {
        out[static_cast<size_t>(i * n + j)] += static_cast<double>(x[static_cast<size_t>(i * k + l)]) *
                                               static_cast<double>(w[static_cast<size_t>(j * k + l)]);
      }
    }
  }
  return out;
}

}  // namespace mm01
