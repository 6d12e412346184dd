#include "kernels/convert/convert.h"

#include <algorithm>

#include "base/check.h"
#ifdef MM01_CUDA
#include "kernels/convert/convert_cuda.h"
#endif

namespace mm01 {
namespace {

constexpr int64_t kPiece = 1 << 16;

float From(float x) {
  return x;
}
float From(bf16 x) {
  return ToFloat(x);
}
void To(float* to, float x) {
  *to = x;
}
void To(bf16* to, float x) {
  *to = ToBF16(x);
}

template <typename A, typename B>
void Copy(Queue& queue, const A* from, B* to, int64_t n) {
  queue.pool().ParallelFor((n + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t end = std::min(n, (piece + 1) * kPiece);
    for (int64_t i = piece * kPiece; i < end; ++i) To(to + i, From(from[i]));
  });
}

}  // namespace

void Convert(Queue& queue, const Tensor& from, const Tensor& to) {
  MM01_ON_CUDA(queue, Convert(queue, from, to));
  Check(from.size() == to.size(), "Convert: sizes disagree");
  const auto with = [](const Tensor& t, auto&& fn) {
    Check(t.dtype == DType::kF32 || t.dtype == DType::kBF16, "Convert takes float32 and bf16");
    t.dtype == DType::kF32 ? fn(static_cast<float*>(t.data)) : fn(static_cast<bf16*>(t.data));
  };
  with(from, [&](const auto* a) { with(to, [&](auto* b) { Copy(queue, a, b, from.size()); }); });
}

}  // namespace mm01
