#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/activation/activation_backward_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/activation/rows-inl.h"
#include "kernels/activation/sigmoid-inl.h"
#include "kernels/vector-inl.h"

#include <algorithm>

#include "kernels/activation/activation_backward.h"
#ifdef MM01_CUDA
#include "kernels/activation/activation_backward_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace {

// fn(d, i) over 0 .. n-1, with the tag of a whole vector and then of one number.
template <typename F>
HWY_INLINE void ForEachTag(int64_t n, F&& fn) {
  const hn::CappedTag<float, 1> one;
  ForEach(
      n, [&](int64_t i) { fn(F32(), i); }, [&](int64_t i) { fn(one, i); });
}

// d/dx of x s with s = sigmoid(x):  s (1 + x (1 - s)).
template <typename D, typename V>
HWY_INLINE V SiluSlope(D d, V x, V s) {
  const V one = hn::Set(d, 1.0f);
  return hn::Mul(s, hn::Add(one, hn::Mul(x, hn::Sub(one, s))));
}

}  // namespace

void SiluOfTarget(Queue& queue, const SiluForwardArgs& a) {
  const auto x = a.x.As<const float, 2>();
  const auto out = a.out.As<float, 2>();
  Check(x.shape == out.shape, "SiluOf: shapes disagree");
  ForRows(queue, x.dim(0), x.dim(1), [&](int64_t r) {
    ForEachTag(x.dim(1), [&](auto d, int64_t i) {
      const auto v = hn::LoadU(d, &x(r, i));
      hn::StoreU(hn::Mul(v, Sigmoid(d, v)), d, &out(r, i));
    });
  });
}

void SiluBackwardTarget(Queue& queue, const SiluBackwardArgs& a) {
  const auto x = a.x.As<const float, 2>(), d_out = a.d_out.As<const float, 2>();
  const auto d_x = a.d_x.As<float, 2>();
  Check(x.shape == d_out.shape && x.shape == d_x.shape, "SiluBackward: shapes disagree");
  ForRows(queue, x.dim(0), x.dim(1), [&](int64_t r) {
    ForEachTag(x.dim(1), [&](auto d, int64_t i) {
      const auto v = hn::LoadU(d, &x(r, i));
      hn::StoreU(hn::Mul(hn::LoadU(d, &d_out(r, i)), SiluSlope(d, v, Sigmoid(d, v))), d,
                 &d_x(r, i));
    });
  });
}

void SwiGluOfTarget(Queue& queue, const SwiGluForwardArgs& a) {
  const auto gate = a.gate.As<const float, 2>(), up = a.up.As<const float, 2>();
  const auto out = a.out.As<float, 2>();
  Check(gate.shape == up.shape && gate.shape == out.shape, "SwiGluOf: shapes disagree");
  ForRows(queue, gate.dim(0), gate.dim(1), [&](int64_t r) {
    ForEachTag(gate.dim(1), [&](auto d, int64_t i) {
      const auto g = hn::LoadU(d, &gate(r, i));
      hn::StoreU(hn::Mul(hn::Mul(g, Sigmoid(d, g)), hn::LoadU(d, &up(r, i))), d, &out(r, i));
    });
  });
}

void SwiGluBackwardTarget(Queue& queue, const SwiGluBackwardArgs& a) {
  const auto gate = a.gate.As<const float, 2>(), up = a.up.As<const float, 2>();
  const auto d_out = a.d_out.As<const float, 2>();
  const auto d_gate = a.d_gate.As<float, 2>(), d_up = a.d_up.As<float, 2>();
  const View<float, 2> out = a.out.empty() ? View<float, 2>{} : a.out.As<float, 2>();
  auto* dots = static_cast<float*>(a.dots.data);
  const int64_t n = gate.dim(1);
  Check(up.shape == gate.shape && d_out.shape == gate.shape && d_gate.shape == gate.shape &&
            d_up.shape == gate.shape && (!out.data || out.shape == gate.shape) &&
            (!dots || a.dots.dim(0) == gate.dim(0)),
        "SwiGluBackward: shapes disagree");
  ForRows(queue, gate.dim(0), n, [&](int64_t r) {
    // Sixteen sums over the row, of which only lane i % 16 takes element i.
    alignas(64) float lanes[16] = {};
    ForEachTag(n, [&](auto d, int64_t i) {
      const auto g = hn::LoadU(d, &gate(r, i)), u = hn::LoadU(d, &up(r, i));
      const auto dy = hn::LoadU(d, &d_out(r, i));
      const auto s = Sigmoid(d, g), silu = hn::Mul(g, s), h = hn::Mul(silu, u);
      float* lane = lanes + i % 16;
      hn::StoreU(hn::Add(hn::LoadU(d, lane), hn::Mul(dy, h)), d, lane);
      if (out.data) hn::StoreU(h, d, &out(r, i));
      hn::StoreU(hn::Mul(hn::Mul(dy, u), SiluSlope(d, g, s)), d, &d_gate(r, i));
      hn::StoreU(hn::Mul(dy, silu), d, &d_up(r, i));
    });
    if (dots) dots[r] = Fold16(lanes, [](float x, float y) { return x + y; });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {

HWY_EXPORT(SiluOfTarget);
HWY_EXPORT(SiluBackwardTarget);
HWY_EXPORT(SwiGluOfTarget);
HWY_EXPORT(SwiGluBackwardTarget);

void SiluOf(Queue& queue, const SiluForwardArgs& args) {
  MM01_ON_CUDA(queue, SiluOf(queue, args));
  HWY_DYNAMIC_DISPATCH(SiluOfTarget)(queue, args);
}

void SiluBackward(Queue& queue, const SiluBackwardArgs& args) {
  MM01_ON_CUDA(queue, SiluBackward(queue, args));
  HWY_DYNAMIC_DISPATCH(SiluBackwardTarget)(queue, args);
}

void SwiGluOf(Queue& queue, const SwiGluForwardArgs& args) {
  MM01_ON_CUDA(queue, SwiGluOf(queue, args));
  HWY_DYNAMIC_DISPATCH(SwiGluOfTarget)(queue, args);
}

void SwiGluBackward(Queue& queue, const SwiGluBackwardArgs& args) {
  MM01_ON_CUDA(queue, SwiGluBackward(queue, args));
  HWY_DYNAMIC_DISPATCH(SwiGluBackwardTarget)(queue, args);
}

}  // namespace mm01
#endif
