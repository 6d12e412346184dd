#include "kernels/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "kernels/rope/rope.h"
#ifdef MM01_CUDA
#include "kernels/attention/attention_cuda.h"
#endif

namespace mm01 {
namespace {

template <typename T>
T Rounded(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return ToBF16(x);
  } else {
    return x;
  }
}

template <typename T>
void Store(Queue& queue, const KvStoreArgs& a) {
  const auto k = a.k.As<const float, 3>(), v = a.v.As<const float, 3>();
  const auto cu = a.cu_seqlens.As<const int64_t, 1>();
  const auto position = a.position.As<const int64_t, 1>(),
             start = a.kv_start.As<const int64_t, 1>();
  const auto table = a.block_table.As<const int32_t, 2>();
  const auto k_pool = a.kv.k.As<T, 3>(), v_pool = a.kv.v.As<T, 3>();
  const auto k_scale = a.kv.k_scale.As<const float, 2>(),
             v_scale = a.kv.v_scale.As<const float, 2>();
  const int64_t kv_heads = k.dim(1), dim = k.dim(2);
  Check(v.shape == k.shape && k_pool.dim(1) == kv_heads && k_pool.dim(2) == dim * kKvPage,
        "KvStore: rows and pages disagree");
  queue.pool().ParallelFor(position.dim(0) * kv_heads, [&](int64_t item, int) {
    const int64_t n = item / kv_heads, g = item % kv_heads;
    for (int64_t row = cu(n); row < cu(n + 1); ++row) {
      const int64_t at = position(n) - start(n) + row - cu(n), slot = at % kKvPage;
      const int64_t page = table(n, at / kKvPage);
      const float k_inverse = 1.0f / k_scale(page, g), v_inverse = 1.0f / v_scale(page, g);
      T* column = &k_pool(page, g, slot / 16 * dim * 16 + slot % 16);
      T* values = &v_pool(page, g, slot * dim);
      for (int64_t i = 0; i < dim; ++i) {
        column[i * 16] = Rounded<T>(k(row, g, i) * k_inverse);
        values[i] = Rounded<T>(v(row, g, i) * v_inverse);
      }
    }
  });
}

}  // namespace

void KvStore(Queue& queue, const KvStoreArgs& args) {
  MM01_ON_CUDA(queue, KvStore(queue, args));
  if (!args.cos.empty()) {
    Rope(queue, args.k, args.cos, args.sin);
    if (!args.q.empty()) Rope(queue, args.q, args.cos, args.sin);
  }
  if (args.kv.k.dtype == DType::kBF16) {
    Store<bf16>(queue, args);
  } else {
    Store<float>(queue, args);
  }
}

void MergeAttention(Queue& queue, const Tensor& out, const Tensor& lse, const Tensor& other,
                    const Tensor& other_lse) {
  MM01_ON_CUDA(queue, MergeAttention(queue, out, lse, other, other_lse));
  const auto o = out.As<float, 3>();
  const auto l = lse.As<float, 2>();
  const auto p = other.As<const float, 3>();
  const auto m = other_lse.As<const float, 2>();
  Check(o.shape == p.shape && l.shape == m.shape, "MergeAttention: shapes disagree");
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  queue.pool().ParallelFor(o.dim(0), [&](int64_t row, int) {
    for (int64_t h = 0; h < o.dim(1); ++h) {
      float& mine = l(row, h);
      const float theirs = m(row, h);
      if (theirs == kNothing) continue;
      const float top = std::max(mine, theirs);
      const float sum = std::exp(mine - top) + std::exp(theirs - top);
      const float a = std::exp(mine - top) / sum, b = std::exp(theirs - top) / sum;
      for (int64_t i = 0; i < o.dim(2); ++i) o(row, h, i) = o(row, h, i) * a + p(row, h, i) * b;
      mine = top + std::log(sum);
    }
  });
}

}  // namespace mm01
