#include "kernels/fill/fill.h"

#include <algorithm>

#ifdef MM01_CUDA
#include "kernels/fill/fill_cuda.h"
#endif

namespace mm01 {

void Fill(Queue& queue, const Tensor& x, float value) {
  MM01_ON_CUDA(queue, Fill(queue, x, value));
  const auto rows = x.As<float, 2>();
  for (int64_t r = 0; r < rows.dim(0); ++r)
    std::fill_n(rows.data + r * rows.stride[0], rows.dim(1), value);
}

}  // namespace mm01
