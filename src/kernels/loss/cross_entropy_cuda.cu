// The logits of a chunk stay in the L2 cache between the products and the softmax: 2^23 of them are
// 32 MB, of the 50 that an H100 has.
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

// A block a row. `gradient` may be the logits themselves, or null: the loss alone. A thread takes
// the same elements each time, so the row is read from the nearest cache after the first.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    Rows(const float* logits, int64_t ld, int num_logits, const int32_t* targets, float scale,
         double* losses, T* gradient) {
  const int64_t t = blockIdx.x;
  const float* const row = logits + t * ld;
  T* const out = gradient ? gradient + t * ld : nullptr;
  const int32_t target = targets[t];
  if (target < 0) {
    for (int i = threadIdx.x; i < num_logits && out; i += kThreads) Store(out + i, 0.0f);
    return;
  }
  const auto each = [&](auto&& fn) {
    const int whole = num_logits / 4 * 4;
    for (int i = threadIdx.x * 4; i < whole; i += kThreads * 4) {
      const float4 v = *reinterpret_cast<const float4*>(row + i);
      fn(i, v.x), fn(i + 1, v.y), fn(i + 2, v.z), fn(i + 3, v.w);
    }
    if (whole + static_cast<int>(threadIdx.x) < num_logits) {
      fn(whole + static_cast<int>(threadIdx.x), row[whole + threadIdx.x]);
    }
  };
  float top = -INFINITY;
  each([&](int, float x) { top = fmaxf(top, x); });
  top = Fold(top, [](float a, float b) { return fmaxf(a, b); });
  const float at_target = row[target] - top;
  float sum = 0.0f;
  each([&](int, float x) { sum += expf(x - top); });
  sum = Fold(sum, [](float a, float b) { return a + b; });
  if (threadIdx.x == 0) {
    losses[t] = log(static_cast<double>(sum)) - static_cast<double>(at_target);
  }
  if (!out) return;
  const float factor = scale / sum;
  each([&](int i, float x) {
    Store(out + i, expf(x - top) * factor - (i == target ? scale : 0.0f));
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
      Rows<T><<<static_cast<unsigned>(n), kThreads, 0, queue.stream()>>>(
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
