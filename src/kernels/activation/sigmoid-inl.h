// 1 / (1 + exp(-x)) for a vector and, with the same bits, for one number.
#if defined(MM01_SIGMOID_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MM01_SIGMOID_INL_H_
#undef MM01_SIGMOID_INL_H_
#else
#define MM01_SIGMOID_INL_H_
#endif

#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {

template <typename D, typename V>
HWY_INLINE V Sigmoid(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  // exp(88) is the largest power of e that float32 holds; beyond it Highway's Exp is not defined.
  const V e = hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f)));
  return hn::Div(hn::Set(d, 1.0f), hn::Add(hn::Set(d, 1.0f), e));
}

HWY_INLINE float SigmoidOf(float x) {
  const hwy::HWY_NAMESPACE::CappedTag<float, 1> d;
  return hwy::HWY_NAMESPACE::GetLane(Sigmoid(d, hwy::HWY_NAMESPACE::Set(d, x)));
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#endif  // include guard
