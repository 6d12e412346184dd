// Chunks are large: 2^26 logits are 8,192 rows of 8,192, for which each product has tiles for all
// multiprocessors. Their 256 MB, and 128 of gradients, pass through memory, which costs less than
// eight times as many launches on 32 MB that a cache may hold.
#include "kernels/loss/cross_entropy_cuda.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/gemm/gemm_backward.h"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Over the block, in one order; every thread gets it.
template <typename F>
__device__ float Fold(float x, F&& fold) {
  __shared__ float part[kWarps];
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = fold(x, __shfl_xor_sync(~0u, x, d));
  __syncthreads();  // the last call's parts have been read
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  x = part[0];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) x = fold(x, part[i]);
  return x;
}

__device__ __forceinline__ void Store4(float* p, const float (&x)[4]) {
  *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ __forceinline__ void Store4(bf16* p, const float (&x)[4]) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(x[0], x[1]);
  const __nv_bfloat162 high = __floats2bfloat162_rn(x[2], x[3]);
  *reinterpret_cast<uint2*>(p) = make_uint2(*reinterpret_cast<const uint32_t*>(&low),
                                            *reinterpret_cast<const uint32_t*>(&high));
}

// A thread's part of a row of n logits, in fours that are 4 kThreads apart. It keeps kQuads of
// them, which must be all, or none and reads them each time. Behind the row's end stands -infinity.
template <int kQuads>
struct Quads {
  const float* row;
  int n;
  float kept[kQuads > 0 ? kQuads : 1][4];

  __device__ __forceinline__ Quads(const float* from, int num_logits) : row(from), n(num_logits) {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) Read(First() + j * kThreads * 4, kept[j]);
  }
  // f(i, x) with the four from i on; what f writes to x stays if it is kept.
  template <typename F>
  __device__ __forceinline__ void Each(F&& f) {
    if constexpr (kQuads > 0) {
#pragma unroll
      for (int j = 0; j < kQuads; ++j) f(First() + j * kThreads * 4, kept[j]);
    } else {
      for (int i = First(); i < n; i += kThreads * 4) {
        float x[4];
        Read(i, x);
        f(i, x);
      }
    }
  }

 private:
  __device__ __forceinline__ static int First() {
    return static_cast<int>(threadIdx.x) * 4;
  }
  __device__ __forceinline__ void Read(int i, float (&x)[4]) const {
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (i < n) v = *reinterpret_cast<const float4*>(row + i);
    const float four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int c = 0; c < 4; ++c) x[c] = i + c < n ? four[c] : -INFINITY;
  }
};
constexpr int kMostKept = 8;

// A block a row. `gradient` may be the logits themselves, or null: the loss alone. Both have rows
// of whole fours.
template <typename T, int kQuads>
__global__ void __launch_bounds__(kThreads)
    Rows(const float* logits, int64_t ld, int num_logits, const int32_t* targets, float scale,
         double* losses, T* gradient) {
  const int64_t t = blockIdx.x;
  const float* const row = logits + t * ld;
  T* const out = gradient ? gradient + t * ld : nullptr;
  const int32_t target = targets[t];
  if (target < 0) {
    const float zeros[4] = {};
    for (int i = threadIdx.x * 4; i < num_logits && out; i += kThreads * 4) Store4(out + i, zeros);
    return;
  }
  Quads<kQuads> quads(row, num_logits);
  float top = -INFINITY;
  quads.Each([&](int, const float(&x)[4]) {
#pragma unroll
    for (int c = 0; c < 4; ++c) top = fmaxf(top, x[c]);
  });
  top = Fold(top, [](float a, float b) { return fmaxf(a, b); });
  const float at_target = row[target] - top;
  float sum = 0.0f;
  quads.Each([&](int, float(&x)[4]) {
#pragma unroll
    for (int c = 0; c < 4; ++c) sum += x[c] = expf(x[c] - top);
  });
  sum = Fold(sum, [](float a, float b) { return a + b; });
  if (threadIdx.x == 0) {
    losses[t] = log(static_cast<double>(sum)) - static_cast<double>(at_target);
  }
  if (!out) return;
  const float factor = scale / sum;
  quads.Each([&](int i, const float(&x)[4]) {
    if (i >= num_logits) return;
    float d[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float e = kQuads > 0 ? x[c] : expf(x[c] - top);
      d[c] = e * factor - (i + c == target ? scale : 0.0f);
    }
    Store4(out + i, d);
  });
}

}  // namespace

CrossEntropy LinearCrossEntropy(Queue& queue, const LinearCrossEntropyArgs& a) {
  const int64_t rows = a.x.dim(0), used = a.vocab_used;
  const bool backward = !a.d_x.empty();
  Check(a.weight.dim(1) == a.x.dim(1) && std::ssize(a.targets) == rows && 0 < used &&
            used <= a.weight.dim(0) && backward == !a.d_weight.empty(),
        "LinearCrossEntropy: shapes disagree");
  for (const int32_t t : a.targets) Check(t < used, "LinearCrossEntropy: a target is no token");
  if (rows == 0) return {};

  const Tensor weight = a.weight.Rows(0, used);
  const int64_t chunk = std::min(rows, std::max(kLossRows, kLossLogits / used / 128 * 128));
  const int64_t ld = (used + 7) / 8 * 8;
  Scratch scratch(queue);
  const auto room = [&](DType type) {
    Tensor t = scratch.GetRows(type, chunk, ld);
    t.shape[1] = used;
    return t;
  };
  const Tensor logits = room(DType::kF32);
  const Tensor gradient = backward && a.x.dtype == DType::kBF16 ? room(DType::kBF16) : logits;
  int32_t* const targets = scratch.Get<int32_t>(rows);
  double* const row_losses = scratch.Get<double>(rows);
  queue.CopyToDevice(targets, a.targets.data(), rows * SizeOf(DType::kI32));
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t n = std::min(rows - begin, chunk);
    const Tensor x = a.x.Rows(begin, begin + n);
    MatMul(queue, {.a = x, .b = weight, .c = logits.Rows(0, n), .transpose_b = true});
    WithElement(gradient, [&]<typename T>() {
      const auto rows_of = used <= kMostKept * kThreads * 4 ? Rows<T, kMostKept> : Rows<T, 0>;
      rows_of<<<static_cast<unsigned>(n), kThreads, 0, queue.stream()>>>(
          static_cast<const float*>(logits.data), ld, static_cast<int>(used), targets + begin,
          static_cast<float>(a.scale), row_losses + begin,
          backward ? static_cast<T*>(gradient.data) : nullptr);
    });
    CheckLaunch();
    if (!backward) continue;
    const Tensor d = gradient.Rows(0, n);
    MatMul(queue, {.a = d, .b = weight, .c = a.d_x.Rows(begin, begin + n)});
    MatMul(queue,
           {.a = d, .b = x, .c = a.d_weight.Rows(0, used), .transpose_a = true, .add = true});
  }
  std::vector<double> losses(static_cast<size_t>(rows));
  queue.CopyToHost(losses.data(), row_losses, rows * SizeOf(DType::kF64));
  CrossEntropy result;
  for (size_t t = 0; t < losses.size(); ++t) {
    if (a.targets[t] < 0) continue;  // nothing was written for it
    result.sum += losses[t];
    ++result.counted;
  }
  return result;
}

}  // namespace mm01::cuda
