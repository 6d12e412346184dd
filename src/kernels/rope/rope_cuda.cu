#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/rope/rope_cuda.h"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kFrequencies = 64;  // of one launch

struct Table {
  const int64_t* position;
  float* cos;
  float* sin;
  int64_t rows, cos_stride, sin_stride;
  int count;  // frequencies
  float frequency[kFrequencies];
};

// Angles in half turns: their reduction is exact, where that of radians would need a table. The
// product with 1 / pi is taken in two terms.
__global__ void __launch_bounds__(kThreads) TableRows(const __grid_constant__ Table t) {
  AllowNextKernel();
  AwaitEarlierKernels();
  constexpr double kHigh = 0x1.45f306dc9c883p-2, kLow = -0x1.6b01ec5417056p-56;  // 1 / pi
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= t.rows * t.count) return;
  const int64_t row = at / t.count;
  const int j = static_cast<int>(at % t.count);
  const double angle = static_cast<double>(t.position[row]) * static_cast<double>(t.frequency[j]);
  const double turns = angle * kHigh;
  const double rest = fma(angle, kHigh, -turns) + angle * kLow;
  double sin, cos;
  sincospi(turns - 2.0 * rint(0.5 * turns) + rest, &sin, &cos);
  t.cos[row * t.cos_stride + j] = static_cast<float>(cos);
  t.sin[row * t.sin_stride + j] = static_cast<float>(sin);
}

template <typename T>
struct Heads {
  T* x;
  int64_t row_stride, head_stride;
  int64_t rows;
  int heads, half;
  const float* cos;
  const float* sin;
  int64_t cos_stride, sin_stride;
  float sign;  // of the sines: -1 turns back
};

// A thread turns eight pairs of a head, or one.
template <typename T, int kWide>
__global__ void __launch_bounds__(kThreads) Turn(const __grid_constant__ Heads<T> h) {
  AllowNextKernel();
  AwaitEarlierKernels();
  const int a_head = h.half / kWide;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= h.rows * h.heads * a_head) return;
  const int j = static_cast<int>(at % a_head) * kWide;
  const int64_t head = at / a_head % h.heads, row = at / a_head / h.heads;
  T* first = h.x + row * h.row_stride + head * h.head_stride + j;
  T* second = first + h.half;
  const float* cos = h.cos + row * h.cos_stride + j;
  const float* sin = h.sin + row * h.sin_stride + j;
  float a[kWide], b[kWide];
  Get(first, a);
  Get(second, b);
#pragma unroll
  for (int i = 0; i < kWide; ++i) {
    const float u = a[i], v = b[i], s = h.sign * sin[i];
    a[i] = u * cos[i] - v * s;
    b[i] = v * cos[i] + u * s;
  }
  Put(first, a);
  Put(second, b);
}

dim3 GridFor(int64_t count) {
  return dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads));
}

}  // namespace

void RopeTable(Queue& queue, const Tensor& position, double theta, const Tensor& cos,
               const Tensor& sin) {
  const auto p = position.As<const int64_t, 1>();
  const auto c = cos.As<float, 2>(), s = sin.As<float, 2>();
  Check(c.shape == s.shape && c.dim(0) == p.dim(0), "RopeTable: shapes disagree");
  const int64_t half = c.dim(1);
  if (p.dim(0) == 0) return;
  for (int64_t first = 0; first < half; first += kFrequencies) {
    Table t{.position = p.data,
            .cos = c.data + first,
            .sin = s.data + first,
            .rows = p.dim(0),
            .cos_stride = c.stride[0],
            .sin_stride = s.stride[0],
            .count = static_cast<int>(std::min<int64_t>(kFrequencies, half - first)),
            .frequency = {}};
    for (int j = 0; j < t.count; ++j) {
      const double exponent = -static_cast<double>(first + j) / static_cast<double>(half);
      t.frequency[j] = static_cast<float>(std::pow(theta, exponent));
    }
    LaunchOverlapped(queue, TableRows, GridFor(t.rows * t.count), kThreads, 0, t);
  }
}

void Rope(Queue& queue, const Tensor& x, const Tensor& cos, const Tensor& sin, bool back) {
  const auto c = cos.As<const float, 2>(), s = sin.As<const float, 2>();
  Check(x.rank == 3 && c.shape == s.shape && c.dim(0) == x.dim(0) && 2 * c.dim(1) <= x.dim(2),
        "Rope: shapes disagree");
  const int64_t half = c.dim(1);
  if (x.dim(0) == 0 || x.dim(1) == 0 || half == 0) return;
  WithElement(x, [&]<typename T>() {
    const auto view = x.As<T, 3>();
    const Heads<T> heads{.x = view.data,
                         .row_stride = view.stride[0],
                         .head_stride = view.stride[1],
                         .rows = view.dim(0),
                         .heads = static_cast<int>(view.dim(1)),
                         .half = static_cast<int>(half),
                         .cos = c.data,
                         .sin = s.data,
                         .cos_stride = c.stride[0],
                         .sin_stride = s.stride[0],
                         .sign = back ? -1.0f : 1.0f};
    const int64_t pairs = view.dim(0) * view.dim(1) * half;
    if (half % 8 == 0 && HasAlignedRows(x)) {
      LaunchOverlapped(queue, Turn<T, 8>, GridFor(pairs / 8), kThreads, 0, heads);
    } else {
      LaunchOverlapped(queue, Turn<T, 1>, GridFor(pairs), kThreads, 0, heads);
    }
  });
}

}  // namespace mm01::cuda
