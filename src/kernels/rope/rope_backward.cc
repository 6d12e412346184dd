#include "kernels/rope/rope_backward.h"

#include "base/check.h"
#ifdef MM01_CUDA
#include "kernels/rope/rope_cuda.h"
#endif

namespace mm01 {

void RopeBackward(Queue& queue, const Tensor& d_x, const Tensor& cos, const Tensor& sin) {
  MM01_ON_CUDA(queue, Rope(queue, d_x, cos, sin, true));
  const auto x = d_x.As<float, 3>();
  const auto c = cos.As<const float, 2>(), s = sin.As<const float, 2>();
  const int64_t half = c.dim(1);
  Check(c.shape == s.shape && c.dim(0) == x.dim(0) && 2 * half <= x.dim(2),
        "RopeBackward: shapes disagree");
  queue.pool().ParallelFor(x.dim(0), [&](int64_t r, int) {
    for (int64_t h = 0; h < x.dim(1); ++h) {
      float* a = &x(r, h, 0);
      float* b = a + half;
      for (int64_t j = 0; j < half; ++j) {
        const float u = a[j], v = b[j];
        a[j] = u * c(r, j) + v * s(r, j);
        b[j] = v * c(r, j) - u * s(r, j);
      }
    }
  });
}

}  // namespace mm01
