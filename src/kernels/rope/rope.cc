#include "kernels/rope/rope.h"

#include <cmath>
#include <vector>

#include "base/check.h"
#ifdef MM01_CUDA
#include "kernels/rope/rope_cuda.h"
#endif

namespace mm01 {

void RopeTable(Queue& queue, const Tensor& position, double theta, const Tensor& cos_tensor,
               const Tensor& sin_tensor) {
  MM01_ON_CUDA(queue, RopeTable(queue, position, theta, cos_tensor, sin_tensor));
  const auto p = position.As<const int64_t, 1>();
  const auto c = cos_tensor.As<float, 2>(), s = sin_tensor.As<float, 2>();
  Check(c.shape == s.shape && c.dim(0) == p.dim(0), "RopeTable: shapes disagree");
  const int64_t half = c.dim(1);
  std::vector<double> frequency;
  for (int64_t j = 0; j < half; ++j) {
    const double exponent = -static_cast<double>(j) / static_cast<double>(half);
    frequency.push_back(static_cast<double>(static_cast<float>(std::pow(theta, exponent))));
  }
  queue.pool().ParallelFor(p.dim(0), [&](int64_t r, int) {
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(p(r)) * frequency[static_cast<size_t>(j)];
      c(r, j) = static_cast<float>(std::cos(angle));
      s(r, j) = static_cast<float>(std::sin(angle));
    }
  });
}

void Rope(Queue& queue, const Tensor& x_tensor, const Tensor& cos_tensor,
          const Tensor& sin_tensor) {
  MM01_ON_CUDA(queue, Rope(queue, x_tensor, cos_tensor, sin_tensor));
  const auto x = x_tensor.As<float, 3>();
  const auto c = cos_tensor.As<const float, 2>(), s = sin_tensor.As<const float, 2>();
  const int64_t half = c.dim(1);
  Check(c.shape == s.shape && c.dim(0) == x.dim(0) && 2 * half <= x.dim(2),
        "Rope: shapes disagree");
  queue.pool().ParallelFor(x.dim(0), [&](int64_t r, int) {
    for (int64_t h = 0; h < x.dim(1); ++h) {
      float* a = &x(r, h, 0);
      float* b = a + half;
      for (int64_t j = 0; j < half; ++j) {
        const float u = a[j], v = b[j];
        a[j] = u * c(r, j) - v * s(r, j);
        b[j] = v * c(r, j) + u * s(r, j);
      }
    }
  });
}

}  // namespace mm01
