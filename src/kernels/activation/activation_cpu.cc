#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/activation/activation_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/activation/rows-inl.h"
#include "kernels/activation/sigmoid-inl.h"
#include "kernels/vector-inl.h"

#include <algorithm>

#include "kernels/activation/activation.h"
#ifdef MM01_CUDA
#include "kernels/activation/activation_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {

void SiluTarget(Queue& queue, const Tensor& tensor) {
  const auto x = tensor.As<float, 2>();
  ForRows(queue, x.dim(0), x.dim(1), [&](int64_t r) {
    const F32 d;
    float* p = &x(r, 0);
    ForEach(
        x.dim(1),
        [&](int64_t i) {
          const VF v = hn::LoadU(d, p + i);
          hn::StoreU(hn::Mul(v, Sigmoid(d, v)), d, p + i);
        },
        [&](int64_t i) { p[i] *= SigmoidOf(p[i]); });
  });
}

void SwiGluTarget(Queue& queue, const Tensor& gate_tensor, const Tensor& up_tensor) {
  const auto gate = gate_tensor.As<float, 2>();
  const auto up = up_tensor.As<const float, 2>();
  Check(gate.shape == up.shape, "SwiGlu: gate and up disagree");
  ForRows(queue, gate.dim(0), gate.dim(1), [&](int64_t r) {
    const F32 d;
    float* g = &gate(r, 0);
    const float* u = &up(r, 0);
    ForEach(
        gate.dim(1),
        [&](int64_t i) {
          const VF v = hn::LoadU(d, g + i);
          hn::StoreU(hn::Mul(hn::Mul(v, Sigmoid(d, v)), hn::LoadU(d, u + i)), d, g + i);
        },
        [&](int64_t i) { g[i] = g[i] * SigmoidOf(g[i]) * u[i]; });
  });
}

void BlendSharedTarget(Queue& queue, const Tensor& x_tensor, const Tensor& shared_tensor,
                       const Tensor& logit_tensor) {
  const auto x = x_tensor.As<float, 2>();
  const auto shared = shared_tensor.As<const float, 2>();
  const auto logit = logit_tensor.As<const float, 2>();
  Check(x.shape == shared.shape && logit.dim(0) == x.dim(0), "BlendShared: shapes disagree");
  ForRows(queue, x.dim(0), x.dim(1), [&](int64_t r) {
    const float c = SigmoidOf(logit(r, 0));
    for (int64_t i = 0; i < x.dim(1); ++i) x(r, i) = x(r, i) * (1.0f - c) + shared(r, i) * c;
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {

HWY_EXPORT(SiluTarget);
HWY_EXPORT(SwiGluTarget);
HWY_EXPORT(BlendSharedTarget);

void Silu(Queue& queue, const Tensor& x) {
  MM01_ON_CUDA(queue, Silu(queue, x));
  HWY_DYNAMIC_DISPATCH(SiluTarget)(queue, x);
}

void SwiGlu(Queue& queue, const Tensor& gate, const Tensor& up) {
  MM01_ON_CUDA(queue, SwiGlu(queue, gate, up));
  HWY_DYNAMIC_DISPATCH(SwiGluTarget)(queue, gate, up);
}

void BlendShared(Queue& queue, const Tensor& x, const Tensor& shared, const Tensor& logit) {
  MM01_ON_CUDA(queue, BlendShared(queue, x, shared, logit));
  HWY_DYNAMIC_DISPATCH(BlendSharedTarget)(queue, x, shared, logit);
}

}  // namespace mm01
#endif
