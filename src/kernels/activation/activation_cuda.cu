// A thread works eight numbers of a row, or one where rows do not begin at multiples of 16 bytes.
#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/activation/activation_cuda.h"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/overlap.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;

// x = f(x, y), with f of the row as well.
template <typename T>
struct Pair {
  T* x;
  int64_t ldx;
  const T* y;
  int64_t ldy;
  int64_t width;
};

struct SiluOf {
  __device__ float operator()(float x, float, int64_t) const { return x * Sigmoid(x); }
};
struct SwiGluOf {
  __device__ float operator()(float gate, float up, int64_t) const {
    return gate * Sigmoid(gate) * up;
  }
};
template <typename L>
struct BlendOf {
  const L* logit;
  int64_t stride;
  __device__ float operator()(float x, float shared, int64_t row) const {
    const float c = Sigmoid(Load(logit + row * stride));
    return x * (1.0f - c) + shared * c;
  }
};

template <typename T, int kWide, bool kHasY, typename F>
__global__ void __launch_bounds__(kThreads) Pointwise(const __grid_constant__ Pair<T> p, F f) {
  AwaitEarlierKernels();
  AllowNextKernel();
  const int64_t row = blockIdx.x;
  const int64_t i = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kWide;
  if (i >= p.width) return;
  float x[kWide], y[kWide] = {};
  Get(p.x + row * p.ldx + i, x);
  if constexpr (kHasY) Get(p.y + row * p.ldy + i, y);
#pragma unroll
  for (int c = 0; c < kWide; ++c) x[c] = f(x[c], y[c], row);
  Put(p.x + row * p.ldx + i, x);
}

template <bool kHasY, typename F>
void Run(Queue& queue, const Tensor& x, const Tensor& y, F f) {
  if (x.dim(0) == 0 || x.dim(1) == 0) return;
  WithElement(x, [&]<typename T>() {
    const Pair<T> p{.x = x.As<T, 2>().data,
                    .ldx = x.stride[0],
                    .y = y.As<T, 2>().data,
                    .ldy = y.stride[0],
                    .width = x.dim(1)};
    const bool wide = x.dim(1) % 8 == 0 && HasAlignedRows(x) && HasAlignedRows(y);
    const int64_t a_block = kThreads * (wide ? 8 : 1);
    const dim3 grid(static_cast<unsigned>(x.dim(0)),
                    static_cast<unsigned>((p.width + a_block - 1) / a_block));
    if (wide) {
      LaunchOverlapped(queue, Pointwise<T, 8, kHasY, F>, grid, kThreads, 0, p, f);
    } else {
      LaunchOverlapped(queue, Pointwise<T, 1, kHasY, F>, grid, kThreads, 0, p, f);
    }
  });
}

}  // namespace

void Silu(Queue& queue, const Tensor& x) {
  Run<false>(queue, x, x, SiluOf());
}

void SwiGlu(Queue& queue, const Tensor& gate, const Tensor& up) {
  Check(gate.shape == up.shape, "SwiGlu: gate and up disagree");
  Run<true>(queue, gate, up, SwiGluOf());
}

void BlendShared(Queue& queue, const Tensor& x, const Tensor& shared, const Tensor& logit) {
  Check(x.shape == shared.shape && logit.rank == 2 && logit.dim(0) == x.dim(0),
        "BlendShared: shapes disagree");
  WithElement(logit, [&]<typename L>() {
    Run<true>(queue, x, shared, BlendOf<L>{logit.As<const L, 2>().data, logit.stride[0]});
  });
}

}  // namespace mm01::cuda
