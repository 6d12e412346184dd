// Schedule: one item a piece of rows; the pieces' shares of d_weight are held and added at the end.
#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm/norm_backward_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/activation/sigmoid-inl.h"
#include "kernels/vector-inl.h"

#include <algorithm>
#include <cmath>

#include "kernels/norm/norm_backward.h"
#ifdef MM01_CUDA
#include "kernels/norm/norm_backward_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kRowsPerPiece = 64;

// The sum over i of value(d, i), in 16 lanes folded in halves.
template <typename F>
HWY_INLINE float Sum(int64_t n, F&& value) {
  const F32 d;
  const hn::CappedTag<float, 1> one;
  alignas(64) float lanes[16] = {};
  const int64_t whole = n / 16 * 16;
  for (int v = 0; v < kVecs; ++v) {
    VF sum = hn::Zero(d);
    for (int64_t i = v * kLanes; i < whole; i += 16) sum = hn::Add(sum, value(d, i));
    hn::StoreU(sum, d, lanes + v * kLanes);
  }
  for (int64_t i = whole; i < n; ++i) lanes[i - whole] += hn::GetLane(value(one, i));
  return Fold16(lanes, [](float a, float b) { return a + b; });
}

// fn(d, i) over 0 .. n-1, with the tag of a whole vector and then of one number.
template <typename F>
HWY_INLINE void ForEachTag(int64_t n, F&& fn) {
  const hn::CappedTag<float, 1> one;
  ForEach(
      n, [&](int64_t i) { fn(F32(), i); }, [&](int64_t i) { fn(one, i); });
}

// A row of each matrix; those that are not there are null.
struct RowPointers {
  const float *x, *gate, *d_out, *carried;
  float *d_x, *d_gate, *share;  // share: the piece's, of d_weight
};

void Row(const GatedNormBackwardArgs& a, const CarriedGradient& residual, const RowPointers& p) {
  const int64_t n = a.x.dim(1);
  const auto* weight = static_cast<const float*>(a.weight.data);
  const float squares = Sum(n, [&](auto d, int64_t i) {
    const auto v = hn::LoadU(d, p.x + i);
    return hn::Mul(v, v);
  });
  const double mean_square = static_cast<double>(squares) / static_cast<double>(n);
  const double root = 1.0 / std::sqrt(mean_square + static_cast<double>(a.eps));
  const auto opening = [&](auto d, int64_t i) {
    return p.gate ? Sigmoid(d, hn::LoadU(d, p.gate + i)) : hn::Set(d, 1.0f);
  };
  const auto carried = [&](auto d, int64_t i) {
    return hn::Mul(hn::Set(d, residual.alpha), hn::LoadU(d, p.carried + i));
  };
  // The gradient of norm(x).
  const auto inner = [&](auto d, int64_t i) {
    auto dy = hn::LoadU(d, p.d_out + i);
    if (p.carried && residual.of_norm) dy = hn::Add(dy, carried(d, i));
    return p.gate ? hn::Mul(dy, opening(d, i)) : dy;
  };
  const float dot = Sum(n, [&](auto d, int64_t i) {
    return hn::Mul(hn::Mul(inner(d, i), hn::LoadU(d, weight + i)), hn::LoadU(d, p.x + i));
  });
  const auto r = static_cast<float>(root);
  const auto pull =
      static_cast<float>(root * root * root * static_cast<double>(dot) / static_cast<double>(n));
  ForEachTag(n, [&](auto d, int64_t i) {
    const auto v = hn::LoadU(d, p.x + i), w = hn::LoadU(d, weight + i), dy = inner(d, i);
    const auto scaled = hn::Mul(v, hn::Set(d, r));
    hn::StoreU(hn::Add(hn::LoadU(d, p.share + i), hn::Mul(dy, scaled)), d, p.share + i);
    if (p.gate) {
      const auto closed = hn::Sub(hn::Set(d, 1.0f), opening(d, i));
      hn::StoreU(hn::Mul(hn::Mul(dy, hn::Mul(scaled, w)), closed), d, p.d_gate + i);
    }
    const auto direct = hn::Mul(hn::Mul(dy, w), hn::Set(d, r));
    auto d_x = hn::Sub(direct, hn::Mul(v, hn::Set(d, pull)));
    if (p.carried && !residual.of_norm) d_x = hn::Add(d_x, carried(d, i));
    hn::StoreU(d_x, d, p.d_x + i);
  });
}

}  // namespace

void GatedNormBackwardTarget(Queue& queue, const GatedNormBackwardArgs& a,
                             const CarriedGradient& residual) {
  const bool gated = !a.gate.empty(), carries = !residual.rows.empty();
  const auto x = a.x.As<const float, 2>(), d_out = a.d_out.As<const float, 2>();
  const auto gate = gated ? a.gate.As<const float, 2>() : View<const float, 2>{};
  const auto d_gate = gated ? a.d_gate.As<float, 2>() : View<float, 2>{};
  const auto carried = carries ? residual.rows.As<const float, 2>() : View<const float, 2>{};
  const auto d_x = a.d_x.As<float, 2>();
  const auto d_weight = a.d_weight.As<float, 1>();
  const int64_t rows = x.dim(0), n = x.dim(1), pieces = (rows + kRowsPerPiece - 1) / kRowsPerPiece;
  Check(d_out.shape == x.shape && d_x.shape == x.shape && d_weight.dim(0) == n &&
            a.weight.As<const float, 1>().dim(0) == n &&
            (!gated || (gate.shape == x.shape && d_gate.shape == x.shape)) &&
            (!carries || carried.shape == x.shape),
        "NormBackward: shapes disagree");
  Scratch scratch(queue);
  float* shares = scratch.Get<float>(pieces * n);
  queue.pool().ParallelFor(pieces, [&](int64_t piece, int) {
    float* share = shares + piece * n;
    std::fill(share, share + n, 0.0f);
    const int64_t end = std::min(rows, (piece + 1) * kRowsPerPiece);
    for (int64_t t = piece * kRowsPerPiece; t < end; ++t) {
      Row(a, residual,
          {.x = &x(t, 0),
           .gate = gated ? &gate(t, 0) : nullptr,
           .d_out = &d_out(t, 0),
           .carried = carries ? &carried(t, 0) : nullptr,
           .d_x = &d_x(t, 0),
           .d_gate = gated ? &d_gate(t, 0) : nullptr,
           .share = share});
    }
  });
  for (int64_t piece = 0; piece < pieces; ++piece) {
    for (int64_t i = 0; i < n; ++i) d_weight(i) += shares[piece * n + i];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {

HWY_EXPORT(GatedNormBackwardTarget);

void GatedNormBackward(Queue& queue, const GatedNormBackwardArgs& a) {
  MM01_ON_CUDA(queue, GatedNormBackward(queue, a));
  Check(!a.gate.empty(), "GatedNormBackward: no gate");
  HWY_DYNAMIC_DISPATCH(GatedNormBackwardTarget)(queue, a, {});
}

void NormBackward(Queue& queue, const NormBackwardArgs& a) {
  MM01_ON_CUDA(queue, NormBackward(queue, a));
  HWY_DYNAMIC_DISPATCH(GatedNormBackwardTarget)
  (queue,
   {.x = a.x,
    .weight = a.weight,
    .eps = a.eps,
    .d_out = a.d_out,
    .d_x = a.d_x,
    .d_weight = a.d_weight},
   a.carried);
}

}  // namespace mm01
#endif
