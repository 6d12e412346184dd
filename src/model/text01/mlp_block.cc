#include "kernels/activation/activation.h"
#include "kernels/gemm/gemm.h"
#include "kernels/moe/moe.h"
#include "model/text01/blocks.h"
#include "parallel/expert_exchange.h"

namespace mm01 {
namespace {

// One SwiGLU over all rows.
void DenseFfn(Queue& queue, const ExpertWeights& w, const Tensor& x, const Tensor& out) {
  const int64_t offset[] = {0, x.dim(0)};
  Experts(queue, {.x = x, .offset = offset, .experts = {&w, 1}, .out = out});
}

}  // namespace

void MlpBlock(const TextModel& m, int64_t layer, const Tensor& x, const Tensor& out) {
  const TextConfig& c = m.weights.config;
  const MlpLayer& w = m.weights.layers[static_cast<size_t>(layer)].mlp;
  if (c.num_experts == 0) return DenseFfn(m.queue, w.experts[0], x, out);

  const int64_t rows = x.dim(0), k = c.num_experts_per_token;
  Scratch scratch(m.queue);
  const Tensor logits(scratch.Get<float>(rows * c.num_experts), {rows, c.num_experts});
  const Tensor chosen(scratch.Get<int32_t>(rows * k), {rows, k});
  const Tensor weights(scratch.Get<float>(rows * k), {rows, k});
  Gemm(m.queue, {x, &w.router, logits});
  if (m.taps) m.taps->Tap(TapPoint::kRouterLogits, layer, logits);
  Route(m.queue, {.logits = logits, .experts = chosen, .weights = weights});
  ExpertExchange(m.queue, {.expert = *m.mesh.expert, .replicas = *m.mesh.tensor},
                 {.x = x,
                  .chosen = chosen,
                  .weights = weights,
                  .num_experts = c.num_experts,
                  .experts = w.experts,
                  .out = out});

  if (c.shared_ffn_size == 0) return;
  const Tensor shared(scratch.Get<float>(rows * c.hidden_size), {rows, c.hidden_size});
  const Tensor coefficient(scratch.Get<float>(rows), {rows, 1});
  DenseFfn(m.queue, w.shared, x, shared);
  Gemm(m.queue, {x, &w.shared_coefficient, coefficient});
  BlendShared(m.queue, out, shared, coefficient);
}

}  // namespace mm01
