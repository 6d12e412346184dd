#include <algorithm>

#include "device/check_cuda.cuh"
#include "kernels/fill/fill_cuda.h"

namespace mm01::cuda {
namespace {

__global__ void FillRows(float* x, int64_t stride, int64_t rows, int64_t width, float value) {
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < width) x[r * stride + i] = value;
  }
}

}  // namespace

void Fill(Queue& queue, const Tensor& x, float value) {
  const auto rows = x.As<float, 2>();
  if (rows.dim(0) == 0 || rows.dim(1) == 0) return;
  constexpr int kThreads = 256;
  const dim3 grid(static_cast<unsigned>((rows.dim(1) + kThreads - 1) / kThreads),
                  static_cast<unsigned>(std::min<int64_t>(rows.dim(0), 65535)));
  FillRows<<<grid, kThreads, 0, queue.stream()>>>(rows.data, rows.stride[0], rows.dim(0),
                                                  rows.dim(1), value);
  CheckLaunch();
}

}  // namespace mm01::cuda
