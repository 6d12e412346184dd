#include "model/text01/forward.h"

#include <limits>

#include "base/check.h"
#include "kernels/embed/embed.h"
#include "kernels/gemm/gemm.h"
#include "kernels/norm/norm.h"
#include "model/text01/blocks.h"

namespace mm01 {

// h is what a layer hands to the next, x its norm. With DeepNorm (post_norm) the residual carries
// x: each norm has been moved to the front of the sub-layer that reads it. Without, it carries h.
void Forward(const TextModel& m, const TextBatch& batch, const Tensor& hidden) {
  const TextWeights& w = m.weights;
  const TextConfig& c = w.config;
  const auto rows = static_cast<int64_t>(batch.ids.size()), width = c.hidden_size;
  Check(hidden.dim(0) == rows && hidden.dim(1) == width, "Forward: hidden is not [T, D]");
  const Step step(m, batch);

  Scratch scratch(m.queue);
  const Tensor h(scratch.Get<float>(rows * width), {rows, width});
  const Tensor x(scratch.Get<float>(rows * width), {rows, width});
  const Tensor branch(scratch.Get<float>(rows * width), {rows, width});
  const Tensor& carried = c.post_norm ? x : h;
  const auto eps = static_cast<float>(c.norm_eps);
  const auto norm_weight = [&](const std::vector<float>& v) { return Tensor(v.data(), {width}); };
  const auto tap = [&](TapPoint point, int64_t layer, const Tensor& values) {
    if (m.taps) m.taps->Tap(point, layer, values);
  };

  Embed(m.queue, {.ids = Tensor(batch.ids.data(), {rows}),
                  .weight = &w.embedding,
                  .embeddings = batch.embeddings,
                  .out = h});
  tap(TapPoint::kEmbedding, -1, h);

  for (int64_t i = 0; i < c.num_layers(); ++i) {
    const TextLayer& layer = w.layers[static_cast<size_t>(i)];
    const bool lightning = layer.kind == LayerKind::kLightning;

    AddNorm(m.queue,
            {.x = h, .weight = norm_weight(layer.input_norm), .eps = eps, .sum = h, .out = x});
    if (lightning) {
      LightningBlock(m, step, i, x, branch);
    } else {
      SoftmaxBlock(m, step, i, x, branch);
    }

    const Residual& attention = lightning ? c.lightning_residual : c.softmax_residual;
    AddNorm(m.queue, {.x = carried,
                      .branch = branch,
                      .alpha = static_cast<float>(attention.alpha),
                      .beta = static_cast<float>(attention.beta),
                      .weight = norm_weight(layer.mlp_norm),
                      .eps = eps,
                      .sum = h,
                      .out = x});
    MlpBlock(m, i, x, branch);
    AddResidual(m.queue, {.x = carried,
                          .branch = branch,
                          .alpha = static_cast<float>(c.mlp_residual.alpha),
                          .beta = static_cast<float>(c.mlp_residual.beta),
                          .sum = h});
    tap(TapPoint::kLayerOutput, i, h);
  }

  AddNorm(m.queue,
          {.x = h, .weight = norm_weight(w.final_norm), .eps = eps, .sum = h, .out = hidden});
  tap(TapPoint::kFinalNorm, -1, hidden);
  for (const TextBatch::Sequence& s : batch.sequences) m.state.Advance(s.slot, s.num_rows);
}

void Logits(const TextModel& m, const Tensor& hidden, const Tensor& out) {
  const TextWeights& w = m.weights;
  Gemm(m.queue, {hidden, &w.head(), out});
  const auto logits = out.As<float, 2>();
  for (int64_t r = 0; r < logits.dim(0); ++r) {
    for (int64_t v = w.vocab_used; v < w.config.vocab_size; ++v) {
      logits(r, v) = -std::numeric_limits<float>::infinity();
    }
  }
}

}  // namespace mm01
