#include "kernels/convert/convert_cuda.h"

#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/elements.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;

template <typename A, typename B>
__global__ void __launch_bounds__(kThreads) ConvertAll(const A* from, B* to, int64_t n, bool wide) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t eights = wide ? n / 8 : 0;
  for (int64_t i = first; i < eights; i += step) {
    float x[8];
    Load8(from + i * 8, x);
    Store8(to + i * 8, x);
  }
  for (int64_t i = eights * 8 + first; i < n; i += step) Store(to + i, Load(from + i));
}

}  // namespace

void Convert(Queue& queue, const Tensor& from, const Tensor& to) {
  const int64_t n = from.size();
  Check(n == to.size(), "Convert: sizes disagree");
  if (n == 0) return;
  const auto aligned = [](const Tensor& t) {
    return reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
  };
  const bool wide = aligned(from) && aligned(to);
  const int64_t blocks = (n + kThreads * 8 - 1) / (kThreads * 8);
  const auto grid = static_cast<unsigned>(std::min<int64_t>(blocks, 8 * Multiprocessors()));
  WithElement(from, [&]<typename A>() {
    WithElement(to, [&]<typename B>() {
      ConvertAll<A, B><<<grid, kThreads, 0, queue.stream()>>>(static_cast<const A*>(from.data),
                                                              static_cast<B*>(to.data), n, wide);
    });
  });
  CheckLaunch();
}

}  // namespace mm01::cuda
