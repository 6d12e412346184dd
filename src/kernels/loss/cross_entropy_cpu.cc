#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/loss/cross_entropy_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/vector-inl.h"

#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/gemm/gemm_backward.h"
#include "kernels/loss/cross_entropy.h"
#ifdef MM01_CUDA
#include "kernels/loss/cross_entropy_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {

// The loss of one row of n logits. With a scale, they become the gradient of scale * loss.
double CrossEntropyRowTarget(float* logits, int64_t n, int32_t target, float scale) {
  const F32 d;
  const hn::CappedTag<float, 1> one;
  const float top = *std::max_element(logits, logits + n);
  const double at_target = static_cast<double>(logits[target]) - static_cast<double>(top);
  alignas(64) float lanes[16] = {};
  const auto exp = [&](auto tag, int64_t i) {
    const auto x = hn::Sub(hn::LoadU(tag, logits + i), hn::Set(tag, top));
    const auto e = hn::Exp(tag, hn::Max(x, hn::Set(tag, -87.0f)));
    hn::StoreU(e, tag, logits + i);
    hn::StoreU(hn::Add(hn::LoadU(tag, lanes + i % 16), e), tag, lanes + i % 16);
  };
  ForEach(
      n, [&](int64_t i) { exp(d, i); }, [&](int64_t i) { exp(one, i); });
  const float sum = Fold16(lanes, [](float a, float b) { return a + b; });
  if (scale != 0.0f) {
    const float factor = scale / sum;
    ForEach(
        n,
        [&](int64_t i) {
          hn::StoreU(hn::Mul(hn::LoadU(d, logits + i), hn::Set(d, factor)), d, logits + i);
        },
        [&](int64_t i) { logits[i] *= factor; });
    logits[target] -= scale;
  }
  return std::log(static_cast<double>(sum)) - at_target;
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {

HWY_EXPORT(CrossEntropyRowTarget);

CrossEntropy LinearCrossEntropy(Queue& queue, const LinearCrossEntropyArgs& a) {
  MM01_ON_CUDA(queue, LinearCrossEntropy(queue, a));
  const int64_t rows = a.x.dim(0), used = a.vocab_used;
  const bool backward = !a.d_x.empty();
  Check(a.weight.dim(1) == a.x.dim(1) && std::ssize(a.targets) == rows && 0 < used &&
            used <= a.weight.dim(0) && backward == !a.d_weight.empty(),
        "LinearCrossEntropy: shapes disagree");
  for (const int32_t t : a.targets) Check(t < used, "LinearCrossEntropy: a target is no token");

  const Tensor weight = a.weight.Rows(0, used);
  Scratch scratch(queue);
  const Tensor room = scratch.GetRows(DType::kF32, std::min(rows, kLossRows), used);
  std::vector<double> losses(static_cast<size_t>(rows));
  const auto scale = static_cast<float>(backward ? a.scale : 0.0);
  for (int64_t begin = 0; begin < rows; begin += kLossRows) {
    const int64_t end = std::min(rows, begin + kLossRows);
    const Tensor x = a.x.Rows(begin, end), logits = room.Rows(0, end - begin);
    MatMul(queue, {.a = x, .b = weight, .c = logits, .transpose_b = true});
    queue.pool().ParallelFor(end - begin, [&](int64_t i, int) {
      const auto t = static_cast<size_t>(begin + i);
      float* row = &logits.As<float, 2>()(i, 0);
      if (a.targets[t] >= 0) {
        losses[t] = HWY_DYNAMIC_DISPATCH(CrossEntropyRowTarget)(row, used, a.targets[t], scale);
      } else if (backward) {
        std::fill(row, row + used, 0.0f);
      }
    });
    if (!backward) continue;
    MatMul(queue, {.a = logits, .b = weight, .c = a.d_x.Rows(begin, end)});
    MatMul(queue,
           {.a = logits, .b = x, .c = a.d_weight.Rows(0, used), .transpose_a = true, .add = true});
  }
  CrossEntropy result;
  for (size_t t = 0; t < losses.size(); ++t) {
    result.sum += losses[t];
    result.counted += a.targets[t] >= 0;
  }
  return result;
}

}  // namespace mm01
#endif
