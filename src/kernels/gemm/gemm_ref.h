// The product from its formula, in double. For tests.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mm01 {

// x [M, K], w [N, K] -> [M, N]
inline std::vector<double> ReferenceGemm(std::span<const float> x, std::span<const float> w,
                                         int64_t m, int64_t n, int64_t k) {
  std::vector<double> out;
  out.reserve(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    const float* a = x.data() + i * k;
    for (int64_t j = 0; j < n; ++j) {
      const float* b = w.data() + j * k;
      double sum = 0.0;
      for (int64_t l = 0; l < k; ++l) sum += static_cast<double>(a[l]) * static_cast<double>(b[l]);
      out.push_back(sum);
    }
  }
  return out;
}

}  // namespace mm01
