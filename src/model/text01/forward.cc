#include "model/text01/forward.h"

#include <limits>
#include <vector>

#include "base/check.h"
#include "kernels/embed/embed.h"
#include "kernels/fill/fill.h"
#include "kernels/gemm/gemm.h"
#include "kernels/norm/norm.h"
#include "model/text01/blocks.h"

namespace mm01 {

void TextModel::Tap(TapPoint point, int64_t layer, const Tensor& values) const {
  if (!taps) return;
  if (queue.device() == Device::kCpu) return taps->Tap(point, layer, values);
  const auto count = static_cast<size_t>(values.size());
  std::vector<float> floats(count);
  if (values.dtype == DType::kBF16) {
    std::vector<bf16> raw(count);
    queue.CopyToHost(raw.data(), values.data, values.size() * SizeOf(DType::kBF16));
    for (size_t i = 0; i < count; ++i) floats[i] = ToFloat(raw[i]);
  } else {
    queue.CopyToHost(floats.data(), values.data, values.size() * SizeOf(DType::kF32));
  }
  taps->Tap(point, layer, Tensor(floats.data(), {values.dim(0), values.dim(1)}));
}

namespace {

// h is what a layer hands to the next, x its norm. With DeepNorm (post_norm) the residual carries
// x: each norm has been moved to the front of the sub-layer that reads it. Without, it carries h.
void RunLayers(const TextModel& m, const Step& step, const Tensor& embeddings,
               const Tensor& hidden) {
  const TextWeights& w = m.weights;
  const TextConfig& c = w.config;
  const int64_t rows = step.num_rows(), width = c.hidden_size;
  Scratch scratch(m.queue);
  const Tensor h = scratch.GetRows(DType::kF32, rows, width);
  const Tensor x = scratch.GetRows(w.activations(), rows, width);
  const Tensor branch = scratch.GetRows(w.activations(), rows, width);
  const Tensor& carried = c.post_norm ? x : h;
  const auto eps = static_cast<float>(c.norm_eps);

  // h = the residual after a sub-layer, out = its norm. With DeepNorm only a tap reads h.
  const Tensor sum = c.post_norm && !m.taps ? Tensor() : h;
  const auto add_norm = [&](const Residual& residual, const Parameters& weight, const Tensor& out) {
    AddNorm(m.queue, {.x = carried,
                      .branch = branch,
                      .alpha = static_cast<float>(residual.alpha),
                      .beta = static_cast<float>(residual.beta),
                      .weight = weight.tensor(),
                      .eps = eps,
                      .sum = sum,
                      .out = out});
  };

  Embed(m.queue, {.ids = step.ids(), .weight = &w.embedding, .embeddings = embeddings, .out = h});
  m.Tap(TapPoint::kEmbedding, -1, h);
  AddNorm(m.queue,
          {.x = h, .weight = w.layers[0].input_norm.tensor(), .eps = eps, .sum = h, .out = x});

  for (int64_t i = 0; i < c.num_layers(); ++i) {
    const TextLayer& layer = w.layers[static_cast<size_t>(i)];
    if (layer.kind == LayerKind::kLightning) {
      LightningBlock(m, step, i, x, branch);
      add_norm(c.lightning_residual, layer.mlp_norm, x);
    } else {
      SoftmaxBlock(m, step, i, x, branch);
      add_norm(c.softmax_residual, layer.mlp_norm, x);
    }
    MlpBlock(m, i, x, branch);
    const bool last = i + 1 == c.num_layers();
    add_norm(c.mlp_residual, last ? w.final_norm : w.layers[static_cast<size_t>(i) + 1].input_norm,
             last ? hidden : x);
    m.Tap(TapPoint::kLayerOutput, i, h);
  }
  m.Tap(TapPoint::kFinalNorm, -1, hidden);
}

}  // namespace

void Forward(const TextModel& m, const TextBatch& batch, const Tensor& hidden) {
  const Step step(m, batch);
  Check(hidden.dim(0) == step.num_rows() && hidden.dim(1) == m.weights.config.hidden_size,
        "Forward: hidden is not [T, D]");
  const auto run = [&] { RunLayers(m, step, batch.embeddings, hidden); };
  if (m.graphs && !m.taps && step.max_rows() == 1 && batch.embeddings.empty()) {
    m.graphs->Run(m.queue, step.GraphKey(hidden.data), run);
  } else {
    run();
  }
  for (const TextBatch::Sequence& s : batch.sequences) m.state.Advance(s.slot, s.num_rows);
}

void Logits(const TextModel& m, const Tensor& hidden, const Tensor& out) {
  if (hidden.dim(0) == 0) return;
  const TextWeights& w = m.weights;
  Gemm(m.queue, {hidden, &w.head(), out});
  Tensor no_token = out;
  no_token.data = static_cast<float*>(out.data) + w.vocab_used;
  no_token.shape[1] = out.dim(1) - w.vocab_used;
  Fill(m.queue, no_token, -std::numeric_limits<float>::infinity());
}

void LogitsToHost(const TextModel& m, const Tensor& hidden, std::span<float> out) {
  const int64_t rows = hidden.dim(0), width = m.weights.config.vocab_size;
  Check(std::ssize(out) == rows * width, "LogitsToHost: out is not [R, V]");
  if (m.queue.device() == Device::kCpu) return Logits(m, hidden, Tensor(out.data(), {rows, width}));
  Scratch scratch(m.queue);
  const Tensor logits = scratch.GetRows(DType::kF32, rows, width);
  Logits(m, hidden, logits);
  m.queue.CopyToHost(out.data(), logits.data, rows * width * SizeOf(DType::kF32));
}

}  // namespace mm01
