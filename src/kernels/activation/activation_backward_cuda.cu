// A thread works eight numbers of a row at a time, or one where rows do not begin at multiples of
// 16 bytes, and reads all of them before it writes any, so that outputs may be inputs.
#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/activation/activation_backward_cuda.h"
#include "kernels/cuda/any_rows.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;

struct Matrices {
  AnyRows a, b, out;
  int64_t pieces, count;  // of kWide numbers: of a row, of all
};

struct SiluValue {
  static constexpr bool kHasB = false;
  __device__ float operator()(float x, float) const { return x * Sigmoid(x); }
};
struct SiluGradient {
  static constexpr bool kHasB = true;
  __device__ float operator()(float x, float dy) const { return dy * SiluSlope(x); }
};
struct SwiGluValue {
  static constexpr bool kHasB = true;
  __device__ float operator()(float gate, float up) const { return gate * Sigmoid(gate) * up; }
};

// out = f(a, b)
template <int kWide, typename F>
__global__ void __launch_bounds__(kThreads) Pointwise(const __grid_constant__ Matrices m, F f) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= m.count) return;
  const int64_t row = at / m.pieces, i = at % m.pieces * kWide;
  float a[kWide], b[kWide] = {};
  Get(m.a, row, i, a);
  if constexpr (F::kHasB) Get(m.b, row, i, b);
#pragma unroll
  for (int c = 0; c < kWide; ++c) a[c] = f(a[c], b[c]);
  Set(m.out, row, i, a);
}

void CheckRows(std::initializer_list<const Tensor*> rows, const char* what) {
  const Tensor& first = **rows.begin();
  for (const Tensor* t : rows) {
    Check((t->dtype == DType::kF32 || t->dtype == DType::kBF16) && t->rank == 2 &&
              t->stride[1] == 1 && t->shape == first.shape,
          what);
  }
}

bool AreAligned(std::initializer_list<const Tensor*> rows) {
  return std::all_of(rows.begin(), rows.end(),
                     [](const Tensor* t) { return t->dim(1) % 8 == 0 && HasAlignedRows(*t); });
}

template <typename F>
void Run(Queue& queue, const Tensor& a, const Tensor& b, const Tensor& out, F f, const char* what) {
  CheckRows({&a, &b, &out}, what);
  if (a.size() == 0) return;
  const bool wide = AreAligned({&a, &b, &out});
  const int64_t pieces = a.dim(1) / (wide ? 8 : 1), count = a.dim(0) * pieces;
  const Matrices m{AnyRows(a), AnyRows(b), AnyRows(out), pieces, count};
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  if (wide) {
    Pointwise<8><<<blocks, kThreads, 0, queue.stream()>>>(m, f);
  } else {
    Pointwise<1><<<blocks, kThreads, 0, queue.stream()>>>(m, f);
  }
  CheckLaunch();
}

struct SwiGluRows {
  AnyRows gate, up, d_out, d_gate, d_up, out;
  bool has_out;
  float* dots;  // null: nobody reads them
  int64_t rows, width;
};

// A block a row, or a warp where one piece of a row a lane is all of it: eight rows a block then.
// The row's sum: a thread's numbers in order, lanes in halves, warps in order.
template <int kWide, bool kByWarp>
__global__ void __launch_bounds__(kThreads)
    SwiGluBackwardRows(const __grid_constant__ SwiGluRows m) {
  const int64_t row = kByWarp ? blockIdx.x * int64_t{kThreads / 32} + threadIdx.x / 32 : blockIdx.x;
  if (row >= m.rows) return;
  const unsigned thread = kByWarp ? threadIdx.x % 32 : threadIdx.x;
  const unsigned threads = kByWarp ? 32 : blockDim.x;
  float sum = 0.0f;
  for (int64_t i = thread * kWide; i < m.width; i += threads * kWide) {
    float gate[kWide], up[kWide], dy[kWide], out[kWide];
    Get(m.gate, row, i, gate);
    Get(m.up, row, i, up);
    Get(m.d_out, row, i, dy);
#pragma unroll
    for (int c = 0; c < kWide; ++c) {
      const float s = Sigmoid(gate[c]), silu = gate[c] * s, h = silu * up[c];
      sum = fmaf(dy[c], h, sum);
      out[c] = h;
      gate[c] = dy[c] * up[c] * SiluSlope(gate[c], s);
      up[c] = dy[c] * silu;
    }
    if (m.has_out) Set(m.out, row, i, out);
    Set(m.d_gate, row, i, gate);
    Set(m.d_up, row, i, up);
  }
  if (m.dots == nullptr) return;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if constexpr (kByWarp) {
    if (thread == 0) m.dots[row] = sum;
  } else {
    __shared__ float warps[kThreads / 32];
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned w = 1; w < blockDim.x / 32; ++w) sum += warps[w];
    m.dots[row] = sum;
  }
}

}  // namespace

void SiluOf(Queue& queue, const SiluForwardArgs& args) {
  Run(queue, args.x, args.x, args.out, SiluValue(), "SiluOf: shapes or types disagree");
}

void SiluBackward(Queue& queue, const SiluBackwardArgs& args) {
  Run(queue, args.x, args.d_out, args.d_x, SiluGradient(),
      "SiluBackward: shapes or types disagree");
}

void SwiGluOf(Queue& queue, const SwiGluForwardArgs& args) {
  Run(queue, args.gate, args.up, args.out, SwiGluValue(), "SwiGluOf: shapes or types disagree");
}

void SwiGluBackward(Queue& queue, const SwiGluBackwardArgs& a) {
  constexpr const char* kShapes = "SwiGluBackward: shapes or types disagree";
  const Tensor& out = a.out.empty() ? a.gate : a.out;
  CheckRows({&a.gate, &a.up, &a.d_out, &a.d_gate, &a.d_up, &out}, kShapes);
  const int64_t rows = a.gate.dim(0), width = a.gate.dim(1);
  Check(a.dots.empty() || a.dots.dim(0) == rows, kShapes);
  const SwiGluRows m{.gate = AnyRows(a.gate),
                     .up = AnyRows(a.up),
                     .d_out = AnyRows(a.d_out),
                     .d_gate = AnyRows(a.d_gate),
                     .d_up = AnyRows(a.d_up),
                     .out = AnyRows(out),
                     .has_out = !a.out.empty(),
                     .dots = a.dots.empty() ? nullptr : a.dots.As<float, 1>().data,
                     .rows = rows,
                     .width = width};
  if (rows == 0) return;
  const bool wide = AreAligned({&a.gate, &a.up, &a.d_out, &a.d_gate, &a.d_up, &out});
  const int64_t pieces = std::max<int64_t>(1, wide ? width / 8 : width);
  const auto threads = static_cast<unsigned>(std::min<int64_t>(kThreads, (pieces + 31) / 32 * 32));
  const auto blocks = static_cast<unsigned>(rows);
  if (wide && threads == 32) {
    constexpr unsigned kRows = kThreads / 32;
    SwiGluBackwardRows<8, true><<<(blocks + kRows - 1) / kRows, kThreads, 0, queue.stream()>>>(m);
  } else if (wide) {
    SwiGluBackwardRows<8, false><<<blocks, threads, 0, queue.stream()>>>(m);
  } else {
    SwiGluBackwardRows<1, false><<<blocks, threads, 0, queue.stream()>>>(m);
  }
  CheckLaunch();
}

}  // namespace mm01::cuda
