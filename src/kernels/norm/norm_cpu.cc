// Schedule: one item a few rows; a row is read twice, from the first-level cache the second time.
#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm/norm_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/activation/sigmoid-inl.h"
#include "kernels/vector-inl.h"

#include <algorithm>
#include <cmath>

#include "kernels/norm/norm.h"
#ifdef MM01_CUDA
#include "kernels/norm/norm_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kRowsPerItem = 8;

float Squares(const float* x, int64_t n) {
  const F32 d;
  alignas(64) float lanes[16] = {};
  const int64_t whole = n / 16 * 16;
  for (int v = 0; v < kVecs; ++v) {
    VF sum = hn::Zero(d);
    for (int64_t i = v * kLanes; i < whole; i += 16) {
      const VF a = hn::LoadU(d, x + i);
      sum = hn::MulAdd(a, a, sum);
    }
    hn::StoreU(sum, d, lanes + v * kLanes);
  }
  for (int64_t i = whole; i < n; ++i) lanes[i - whole] = std::fma(x[i], x[i], lanes[i - whole]);
  return Fold16(lanes, [](float a, float b) { return a + b; });
}

float InverseRoot(float squares, int64_t width, float eps) {
  return static_cast<float>(1.0 /
                            std::sqrt(static_cast<double>(squares) / static_cast<double>(width) +
                                      static_cast<double>(eps)));
}

// sum = alpha x + beta branch, each product rounded, whatever the machine.
void Add(const float* x, const float* branch, float alpha, float beta, int64_t n, float* sum) {
  const F32 d;
  const VF a = hn::Set(d, alpha), b = hn::Set(d, beta);
  ForEach(
      n,
      [&](int64_t i) {
        const VF scaled = hn::Mul(hn::LoadU(d, x + i), a);
        hn::StoreU(hn::Add(scaled, hn::Mul(hn::LoadU(d, branch + i), b)), d, sum + i);
      },
      [&](int64_t i) { sum[i] = x[i] * alpha + branch[i] * beta; });
}

template <typename F>
void ForRows(Queue& queue, int64_t rows, F&& fn) {
  queue.pool().ParallelFor((rows + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int) {
    const int64_t end = std::min(rows, (item + 1) * kRowsPerItem);
    for (int64_t r = item * kRowsPerItem; r < end; ++r) fn(r);
  });
}

}  // namespace

void AddNormTarget(Queue& queue, const AddNormArgs& a) {
  const auto x = a.x.As<const float, 2>();
  const auto out = a.out.As<float, 2>();
  const auto sum = a.sum.empty() ? out : a.sum.As<float, 2>();
  const auto weight = a.weight.As<const float, 1>();
  const int64_t n = x.dim(1);
  Check(sum.shape == x.shape && out.shape == x.shape && weight.dim(0) == n,
        "AddNorm: shapes disagree");
  const bool has_branch = !a.branch.empty();
  Check(has_branch || a.alpha == 1.0f, "AddNorm: alpha without a branch");
  const auto branch = has_branch ? a.branch.As<const float, 2>() : x;
  Check(branch.shape == x.shape, "AddNorm: branch is not as x");
  ForRows(queue, x.dim(0), [&](int64_t r) {
    const F32 d;
    float* s = &sum(r, 0);
    if (has_branch) {
      Add(&x(r, 0), &branch(r, 0), a.alpha, a.beta, n, s);
    } else if (s != &x(r, 0)) {
      std::copy_n(&x(r, 0), n, s);
    }
    const float scale = InverseRoot(Squares(s, n), n, a.eps);
    const VF vscale = hn::Set(d, scale);
    const float* w = weight.data;
    float* o = &out(r, 0);
    ForEach(
        n,
        [&](int64_t i) {
          const VF y = hn::Mul(hn::LoadU(d, s + i), vscale);
          hn::StoreU(hn::Mul(y, hn::LoadU(d, w + i)), d, o + i);
        },
        [&](int64_t i) { o[i] = s[i] * scale * w[i]; });
  });
}

void AddResidualTarget(Queue& queue, const AddResidualArgs& a) {
  const auto x = a.x.As<const float, 2>(), branch = a.branch.As<const float, 2>();
  const auto sum = a.sum.As<float, 2>();
  Check(x.shape == branch.shape && x.shape == sum.shape, "AddResidual: shapes disagree");
  ForRows(queue, x.dim(0),
          [&](int64_t r) { Add(&x(r, 0), &branch(r, 0), a.alpha, a.beta, x.dim(1), &sum(r, 0)); });
}

void SumOfSquaresTarget(Queue& queue, const Tensor& x_tensor, const Tensor& out_tensor) {
  const auto x = x_tensor.As<const float, 2>();
  const auto out = out_tensor.As<float, 1>();
  Check(out.dim(0) == x.dim(0), "SumOfSquares: shapes disagree");
  ForRows(queue, x.dim(0), [&](int64_t r) { out(r) = Squares(&x(r, 0), x.dim(1)); });
}

void GatedNormTarget(Queue& queue, const GatedNormArgs& a) {
  const auto x = a.x.As<const float, 2>(), gate = a.gate.As<const float, 2>();
  const auto weight = a.weight.As<const float, 1>();
  const auto out = a.out.As<float, 2>();
  const bool whole = a.squares.empty();
  const auto squares = whole ? View<const float, 1>{} : a.squares.As<const float, 1>();
  const int64_t n = x.dim(1);
  Check(gate.shape == x.shape && out.shape == x.shape && weight.dim(0) == n &&
            (whole ? a.width == n : squares.dim(0) == x.dim(0) && a.width >= n),
        "GatedNorm: shapes disagree");
  ForRows(queue, x.dim(0), [&](int64_t r) {
    const F32 d;
    const float *in = &x(r, 0), *g = &gate(r, 0), *w = weight.data;
    float* o = &out(r, 0);
    const float scale = InverseRoot(whole ? Squares(in, n) : squares(r), a.width, a.eps);
    const VF vscale = hn::Set(d, scale);
    ForEach(
        n,
        [&](int64_t i) {
          const VF y = hn::Mul(hn::Mul(hn::LoadU(d, in + i), vscale), hn::LoadU(d, w + i));
          hn::StoreU(hn::Mul(y, Sigmoid(d, hn::LoadU(d, g + i))), d, o + i);
        },
        [&](int64_t i) { o[i] = in[i] * scale * w[i] * SigmoidOf(g[i]); });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {

HWY_EXPORT(AddNormTarget);
HWY_EXPORT(AddResidualTarget);
HWY_EXPORT(SumOfSquaresTarget);
HWY_EXPORT(GatedNormTarget);

void AddNorm(Queue& queue, const AddNormArgs& args) {
  MM01_ON_CUDA(queue, AddNorm(queue, args));
  HWY_DYNAMIC_DISPATCH(AddNormTarget)(queue, args);
}

void AddResidual(Queue& queue, const AddResidualArgs& args) {
  MM01_ON_CUDA(queue, AddResidual(queue, args));
  HWY_DYNAMIC_DISPATCH(AddResidualTarget)(queue, args);
}

void SumOfSquares(Queue& queue, const Tensor& x, const Tensor& out) {
  MM01_ON_CUDA(queue, SumOfSquares(queue, x, out));
  HWY_DYNAMIC_DISPATCH(SumOfSquaresTarget)(queue, x, out);
}

void GatedNorm(Queue& queue, const GatedNormArgs& args) {
  MM01_ON_CUDA(queue, GatedNorm(queue, args));
  HWY_DYNAMIC_DISPATCH(GatedNormTarget)(queue, args);
}

}  // namespace mm01
#endif
