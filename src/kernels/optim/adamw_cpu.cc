#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/optim/adamw_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/vector-inl.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/optim/adamw.h"
#ifdef MM01_CUDA
#include "kernels/optim/adamw_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kPiece = 16384;

struct Factors {
  float scale, beta1, beta2, rest1, rest2, rate, root, eps, decay;

  explicit Factors(const AdamWArgs& a)
      : scale(static_cast<float>(a.gradient_scale)),
        beta1(static_cast<float>(a.beta1)),
        beta2(static_cast<float>(a.beta2)),
        rest1(static_cast<float>(1.0 - a.beta1)),
        rest2(static_cast<float>(1.0 - a.beta2)),
        rate(static_cast<float>(a.learning_rate /
                                (1.0 - std::pow(a.beta1, static_cast<double>(a.step))))),
        root(static_cast<float>(1.0 /
                                std::sqrt(1.0 - std::pow(a.beta2, static_cast<double>(a.step))))),
        eps(static_cast<float>(a.eps)),
        decay(static_cast<float>(a.learning_rate * a.weight_decay)) {}
};

// Elements at p of as many lanes as D has.
template <typename D>
HWY_INLINE void Update(D d, const Factors& f, float* value, const float* gradient, float* m,
                       float* v) {
  const auto set = [&](float x) { return hn::Set(d, x); };
  const auto g = hn::Mul(hn::LoadU(d, gradient), set(f.scale));
  const auto first = hn::Add(hn::Mul(set(f.beta1), hn::LoadU(d, m)), hn::Mul(set(f.rest1), g));
  const auto second =
      hn::Add(hn::Mul(set(f.beta2), hn::LoadU(d, v)), hn::Mul(set(f.rest2), hn::Mul(g, g)));
  const auto below = hn::Add(hn::Mul(hn::Sqrt(second), set(f.root)), set(f.eps));
  const auto old = hn::LoadU(d, value);
  const auto step =
      hn::Add(hn::Div(hn::Mul(set(f.rate), first), below), hn::Mul(set(f.decay), old));
  hn::StoreU(first, d, m);
  hn::StoreU(second, d, v);
  hn::StoreU(hn::Sub(old, step), d, value);
}

}  // namespace

void AdamWTarget(Queue& queue, const AdamWArgs& a) {
  const Factors f(a);
  const int64_t n = a.value.size();
  auto* value = static_cast<float*>(a.value.data);
  const auto* gradient = static_cast<const float*>(a.gradient.data);
  auto* m = static_cast<float*>(a.m.data);
  auto* v = static_cast<float*>(a.v.data);
  queue.pool().ParallelFor((n + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t begin = piece * kPiece, count = std::min(kPiece, n - begin);
    const hn::CappedTag<float, 1> one;
    ForEach(
        count,
        [&](int64_t i) {
          const int64_t at = begin + i;
          Update(F32(), f, value + at, gradient + at, m + at, v + at);
        },
        [&](int64_t i) {
          const int64_t at = begin + i;
          Update(one, f, value + at, gradient + at, m + at, v + at);
        });
  });
}

double SumOfSquaresOfTarget(Queue& queue, const Tensor& x) {
  const int64_t n = x.size(), pieces = (n + kPiece - 1) / kPiece;
  const auto* data = static_cast<const float*>(x.data);
  std::vector<double> sums(static_cast<size_t>(pieces));
  queue.pool().ParallelFor(pieces, [&](int64_t piece, int) {
    const float* p = data + piece * kPiece;
    const int64_t count = std::min(kPiece, n - piece * kPiece);
    double lanes[8] = {};
    for (int64_t i = 0; i < count; ++i) {
      const double value = p[i];
      lanes[i % 8] += value * value;
    }
    double sum = 0.0;
    for (const double lane : lanes) sum += lane;
    sums[static_cast<size_t>(piece)] = sum;
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {
namespace {

bool IsFlat(const Tensor& x) {
  int64_t step = 1;
  for (int d = x.rank - 1; d >= 0; --d) {
    if (x.stride[static_cast<size_t>(d)] != step) return false;
    step *= x.dim(d);
  }
  return x.dtype == DType::kF32;
}

}  // namespace

HWY_EXPORT(AdamWTarget);
HWY_EXPORT(SumOfSquaresOfTarget);

namespace {

void CheckArgs(const AdamWArgs& a) {
  for (const Tensor* t : {&a.value, &a.gradient, &a.m, &a.v}) {
    Check(IsFlat(*t) && t->size() == a.value.size(),
          "AdamW: value, gradient, m and v must be contiguous float32 of one shape");
  }
  Check(a.step >= 1, "AdamW: steps are counted from 1");
}

void CheckArgs(const Tensor& x) {
  Check(IsFlat(x), "SumOfSquaresOf: x must be contiguous float32");
}

}  // namespace

void AdamW(Queue& queue, const AdamWArgs& a) {
  CheckArgs(a);
  MM01_ON_CUDA(queue, AdamW(queue, a));
  HWY_DYNAMIC_DISPATCH(AdamWTarget)(queue, a);
}

void AdamWMany(Queue& queue, std::span<const AdamWArgs> tensors) {
  for (const AdamWArgs& a : tensors) CheckArgs(a);
  MM01_ON_CUDA(queue, AdamWMany(queue, tensors));
  for (const AdamWArgs& a : tensors) HWY_DYNAMIC_DISPATCH(AdamWTarget)(queue, a);
}

double SumOfSquaresOf(Queue& queue, const Tensor& x) {
  CheckArgs(x);
  MM01_ON_CUDA(queue, SumOfSquaresOf(queue, x));
  return HWY_DYNAMIC_DISPATCH(SumOfSquaresOfTarget)(queue, x);
}

double SumOfSquaresOfMany(Queue& queue, std::span<const Tensor> tensors) {
  for (const Tensor& x : tensors) CheckArgs(x);
  MM01_ON_CUDA(queue, SumOfSquaresOfMany(queue, tensors));
  double sum = 0.0;
  for (const Tensor& x : tensors) sum += HWY_DYNAMIC_DISPATCH(SumOfSquaresOfTarget)(queue, x);
  return sum;
}

}  // namespace mm01
#endif
