#include "kernels/moe/moe.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "kernels/activation/activation.h"
#include "kernels/gemm/gemm.h"
#ifdef MM01_CUDA
#include "kernels/moe/moe_cuda.h"
#endif

namespace mm01 {

void Route(Queue& queue, const RouteArgs& a) {
  const auto logits = a.logits.As<const float, 2>();
  const auto experts = a.experts.As<int32_t, 2>();
  const auto weights = a.weights.As<float, 2>();
  const int64_t num_experts = logits.dim(1), k = experts.dim(1);
  Check(experts.shape == weights.shape && experts.dim(0) == logits.dim(0) && k <= num_experts,
        "Route: shapes disagree");
  queue.pool().ParallelFor(logits.dim(0), [&](int64_t t, int) {
    std::vector<int32_t> order(static_cast<size_t>(num_experts));
    std::iota(order.begin(), order.end(), 0);
    const auto higher = [&](int32_t x, int32_t y) {
      return logits(t, x) != logits(t, y) ? logits(t, x) > logits(t, y) : x < y;
    };
    std::partial_sort(order.begin(), order.begin() + k, order.end(), higher);
    double sum = 0.0;
    const auto share = [&](int64_t i) {
      return std::exp(static_cast<double>(logits(t, order[static_cast<size_t>(i)])) -
                      static_cast<double>(logits(t, order[0])));
    };
    for (int64_t i = 0; i < k; ++i) sum += share(i);
    for (int64_t i = 0; i < k; ++i) {
      experts(t, i) = order[static_cast<size_t>(i)];
      weights(t, i) = static_cast<float>(share(i) / sum);
    }
  });
}

Dispatch MakeDispatch(const Tensor& experts_tensor, const Tensor& weights_tensor,
                      int64_t num_experts) {
  const auto experts = experts_tensor.As<const int32_t, 2>();
  const auto weights = weights_tensor.As<const float, 2>();
  const int64_t tokens = experts.dim(0), k = experts.dim(1);
  Dispatch d;
  d.k = k;
  d.offset.assign(static_cast<size_t>(num_experts + 1), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < k; ++i) ++d.offset[static_cast<size_t>(experts(t, i)) + 1];
  }
  std::partial_sum(d.offset.begin(), d.offset.end(), d.offset.begin());

  std::vector<int64_t> next(d.offset.begin(), d.offset.end() - 1);
  d.token.resize(static_cast<size_t>(tokens * k));
  d.row.resize(d.token.size());
  d.weight.resize(d.token.size());
  std::vector<int64_t> choice(static_cast<size_t>(k));
  for (int64_t t = 0; t < tokens; ++t) {
    std::iota(choice.begin(), choice.end(), 0);
    std::sort(choice.begin(), choice.end(),
              [&](int64_t x, int64_t y) { return experts(t, x) < experts(t, y); });
    for (int64_t i = 0; i < k; ++i) {
      const int64_t c = choice[static_cast<size_t>(i)];
      const int64_t row = next[static_cast<size_t>(experts(t, c))]++;
      d.token[static_cast<size_t>(row)] = t;
      d.row[static_cast<size_t>(t * k + i)] = row;
      d.weight[static_cast<size_t>(t * k + i)] = weights(t, c);
    }
  }
  return d;
}

void GatherRows(Queue& queue, const Tensor& x_tensor, std::span<const int64_t> token,
                const Tensor& out_tensor) {
  const auto x = x_tensor.As<const float, 2>();
  const auto out = out_tensor.As<float, 2>();
  Check(out.dim(0) == static_cast<int64_t>(token.size()) && out.dim(1) == x.dim(1),
        "GatherRows: shapes disagree");
  queue.pool().ParallelFor(out.dim(0), [&](int64_t r, int) {
    std::copy_n(&x(token[static_cast<size_t>(r)], 0), x.dim(1), &out(r, 0));
  });
}

void Experts(Queue& queue, const ExpertsArgs& a) {
  const auto num_experts = static_cast<int64_t>(a.experts.size());
  Check(static_cast<int64_t>(a.offset.size()) == num_experts + 1 && a.offset.back() == a.x.dim(0),
        "Experts: offsets do not cover the rows");
  if (a.x.dim(0) == 0) return;
  const int64_t width = a.experts[0].w1.n();
  Scratch scratch(queue);
  const int64_t rows = a.x.dim(0);
  const Tensor gate(scratch.Get<float>(rows * width), {rows, width});
  const Tensor up(scratch.Get<float>(rows * width), {rows, width});

  std::vector<GemmArgs> in, out;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t begin = a.offset[static_cast<size_t>(e)],
                  end = a.offset[static_cast<size_t>(e + 1)];
    if (begin == end) continue;
    const ExpertWeights& w = a.experts[static_cast<size_t>(e)];
    in.push_back({a.x.Rows(begin, end), &w.w1, gate.Rows(begin, end)});
    in.push_back({a.x.Rows(begin, end), &w.w3, up.Rows(begin, end)});
    out.push_back({gate.Rows(begin, end), &w.w2, a.out.Rows(begin, end)});
  }
  GemmMany(queue, in);
  SwiGlu(queue, gate, up);
  GemmMany(queue, out);
}

void Combine(Queue& queue, const Dispatch& d, const Tensor& rows_tensor, const Tensor& y_tensor) {
  const auto rows = rows_tensor.As<const float, 2>();
  const auto y = y_tensor.As<float, 2>();
  Check(rows.dim(0) == d.num_rows() && y.dim(0) * d.k == d.num_rows() && rows.dim(1) == y.dim(1),
        "Combine: shapes disagree");
  queue.pool().ParallelFor(y.dim(0), [&](int64_t t, int) {
    float* out = &y(t, 0);
    for (int64_t i = 0; i < d.k; ++i) {
      const auto at = static_cast<size_t>(t * d.k + i);
      const float* row = &rows(d.row[at], 0);
      const float weight = d.weight[at];
      if (i == 0) {
        for (int64_t j = 0; j < y.dim(1); ++j) out[j] = weight * row[j];
      } else {
        for (int64_t j = 0; j < y.dim(1); ++j) out[j] += weight * row[j];
      }
    }
  });
}

void Moe(Queue& queue, const MoeArgs& a) {
  MM01_ON_CUDA(queue, Moe(queue, a));
  const int64_t tokens = a.x.dim(0), width = a.x.dim(1), num_experts = a.router->n();
  Check(a.router->k() == width && std::ssize(a.experts) == num_experts, "Moe: shapes disagree");
  Scratch scratch(queue);
  const Tensor experts(scratch.Get<int32_t>(tokens * a.k), {tokens, a.k});
  const Tensor weights = scratch.GetRows(DType::kF32, tokens, a.k);
  Gemm(queue, {a.x, a.router, a.logits});
  Route(queue, {.logits = a.logits, .experts = experts, .weights = weights});
  const Dispatch d = MakeDispatch(experts, weights, num_experts);
  const Tensor in = scratch.GetRows(DType::kF32, d.num_rows(), width);
  const Tensor out = scratch.GetRows(DType::kF32, d.num_rows(), width);
  GatherRows(queue, a.x, d.token, in);
  Experts(queue, {.x = in, .offset = d.offset, .experts = a.experts, .out = out});
  Combine(queue, d, out, a.out);
}

}  // namespace mm01
