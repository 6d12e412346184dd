// What every kernel file starts from: 16 lanes of float32 on any SIMD target, and sums over them in
// one order whatever the width of a vector. Included through hwy/foreach_target.h.
#if defined(MM01_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MM01_VECTOR_INL_H_
#undef MM01_VECTOR_INL_H_
#else
#define MM01_VECTOR_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "tensor/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::CappedTag<float, 16>;
using VF = hn::Vec<F32>;
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(F32()));
inline constexpr int kVecs = 16 / kLanes;  // vectors that make up the 16 lanes

HWY_INLINE VF LoadAsF32(const float* p) {
  return hn::LoadU(F32(), p);
}
HWY_INLINE VF LoadAsF32(const bf16* p) {
  // Through 16-bit integers: Highway's own bf16 loads do not exist on every target.
  const hn::Rebind<uint16_t, F32> d16;
  const hn::Rebind<uint32_t, F32> d32;
  const auto wide = hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)));
  return hn::BitCast(F32(), hn::ShiftLeft<16>(wide));
}
HWY_INLINE VF LoadAsF32(const int8_t* p) {
  const hn::Rebind<int8_t, F32> d8;
  const hn::Rebind<int32_t, F32> d32;
  return hn::ConvertTo(F32(), hn::PromoteTo(d32, hn::LoadU(d8, p)));
}

// Lane i of 16 holds elements i, i + 16, ...; folded in halves.
template <typename Op>
HWY_INLINE float Fold16(float* lanes, Op op) {
  for (int half = 8; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = op(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}

// Calls fn(vector at i, i) over 0 .. n-1 by whole vectors and then fn's scalar twin over the rest.
template <typename Vector, typename Scalar>
HWY_INLINE void ForEach(int64_t n, Vector vector, Scalar scalar) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) vector(i);
  for (; i < n; ++i) scalar(i);
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#endif  // include guard
