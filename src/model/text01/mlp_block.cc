#include "kernels/activation/activation.h"
#include "kernels/gemm/gemm.h"
#include "kernels/moe/moe.h"
#include "model/text01/blocks.h"
#include "parallel/expert_exchange.h"

namespace mm01 {
namespace {

// One SwiGLU over all rows.
void DenseFfn(Queue& queue, const ExpertWeights& w, const Tensor& x, const Tensor& out) {
  Scratch scratch(queue);
  const Tensor gate = scratch.GetRows(x.dtype, x.dim(0), w.w1.n());
  const Tensor up = scratch.GetRows(x.dtype, x.dim(0), w.w1.n());
  const GemmArgs projections[] = {{x, &w.w1, gate}, {x, &w.w3, up}};
  GemmMany(queue, projections);
  SwiGlu(queue, gate, up);
  Gemm(queue, {gate, &w.w2, out});
}

// Where experts lie on several ranks, their rows travel between the four calls of
// kernels/moe/moe.h.
void ExpertsOfRanks(const TextModel& m, const MlpLayer& w, const Tensor& x, const Tensor& logits,
                    const Tensor& out) {
  const TextConfig& c = m.weights.config;
  const int64_t rows = x.dim(0), k = c.num_experts_per_token;
  Scratch scratch(m.queue);
  const Tensor chosen(scratch.Get<int32_t>(rows * k), {rows, k});
  const Tensor weights(scratch.Get<float>(rows * k), {rows, k});
  Gemm(m.queue, {x, &w.router, logits});
  Route(m.queue, {.logits = logits, .experts = chosen, .weights = weights});
  ExpertExchange(m.queue, {.expert = *m.mesh.expert, .replicas = *m.mesh.tensor},
                 {.x = x,
                  .chosen = chosen,
                  .weights = weights,
                  .num_experts = c.num_experts,
                  .experts = w.experts,
                  .out = out});
}

}  // namespace

void MlpBlock(const TextModel& m, int64_t layer, const Tensor& x, const Tensor& out) {
  const TextConfig& c = m.weights.config;
  const MlpLayer& w = m.weights.layers[static_cast<size_t>(layer)].mlp;
  if (c.num_experts == 0) return DenseFfn(m.queue, w.experts[0], x, out);

  const int64_t rows = x.dim(0);
  Scratch scratch(m.queue);
  const Tensor logits = scratch.GetRows(DType::kF32, rows, c.num_experts);
  if (m.mesh.expert->size() > 1) {
    ExpertsOfRanks(m, w, x, logits, out);
  } else {
    Moe(m.queue, {.x = x,
                  .router = &w.router,
                  .k = c.num_experts_per_token,
                  .experts = w.experts,
                  .logits = logits,
                  .out = out});
  }
  m.Tap(TapPoint::kRouterLogits, layer, logits);

  if (c.shared_ffn_size == 0) return;
  const Tensor shared = scratch.GetRows(x.dtype, rows, c.hidden_size);
  const Tensor coefficient = scratch.GetRows(DType::kF32, rows, 1);
  DenseFfn(m.queue, w.shared, x, shared);
  Gemm(m.queue, {x, &w.shared_coefficient, coefficient});
  BlendShared(m.queue, out, shared, coefficient);
}

}  // namespace mm01
