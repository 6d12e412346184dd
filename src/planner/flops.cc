#include "planner/flops.h"

#include "base/check.h"
#include "model/text01/state.h"  // kLightningBlock

namespace mm01 {

LayerParameters CountLayerParameters(const TextConfig& c, LayerKind kind) {
  const int64_t width = c.num_heads * c.head_dim;
  const int64_t kv_width = c.num_kv_heads * c.head_dim;
  const int64_t ffn = 3 * c.hidden_size * c.ffn_size;
  LayerParameters n;
  n.attention = kind == LayerKind::kLightning ? 5 * width * c.hidden_size + width
                                              : 2 * (width + kv_width) * c.hidden_size;
  n.router = c.num_experts * c.hidden_size;
  n.experts = c.num_experts > 0 ? c.num_experts * ffn : ffn;
  n.activated_experts = c.num_experts > 0 ? c.num_experts_per_token * ffn : ffn;
  if (c.shared_ffn_size > 0) {
    n.shared = 3 * c.hidden_size * c.shared_ffn_size;
    n.router += c.hidden_size;
  }
  n.norms = 2 * c.hidden_size;
  return n;
}

ParameterCount CountParameters(const TextConfig& c) {
  const LayerParameters lightning = CountLayerParameters(c, LayerKind::kLightning);
  const LayerParameters softmax = CountLayerParameters(c, LayerKind::kSoftmax);
  ParameterCount n;
  n.embedding = c.vocab_size * c.hidden_size;
  n.lm_head = c.tied_embeddings ? 0 : n.embedding;
  n.activated = c.num_lightning_layers() * lightning.activated() +
                c.num_softmax_layers() * softmax.activated() + c.hidden_size;
  n.total = n.embedding + n.lm_head + c.num_lightning_layers() * lightning.total() +
            c.num_softmax_layers() * softmax.total() + c.hidden_size;
  return n;
}

Flops FlopsPerToken(const TextConfig& c, int64_t context) {
  Check(context >= 1, "a token is part of its own context");
  const auto head_dim = static_cast<double>(c.head_dim);
  const auto width = static_cast<double>(c.num_heads * c.head_dim);
  const auto rows = static_cast<double>((context - 1) % kLightningBlock + 1);
  Flops f;
  f.weights = 2.0 * static_cast<double>(CountParameters(c).activated);
  f.head = 2.0 * static_cast<double>(c.vocab_size * c.hidden_size);
  f.lightning = 4.0 * static_cast<double>(c.num_lightning_layers()) * width * (head_dim + rows);
  f.softmax =
      4.0 * static_cast<double>(c.num_softmax_layers()) * width * static_cast<double>(context);
  return f;
}

double PrefillFlops(const TextConfig& config, int64_t begin, int64_t n) {
  const Flops typical = FlopsPerToken(config, kLightningBlock / 2);
  const Flops middle = FlopsPerToken(config, begin + n / 2 + 1);
  return (typical.weights + typical.lightning + middle.softmax) * static_cast<double>(n);
}

}  // namespace mm01
