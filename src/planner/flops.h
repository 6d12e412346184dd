// What a token costs to compute, and how many parameters it meets, from the configuration alone.
#pragma once

#include <cstdint>

#include "model/text01/config.h"

namespace mm01 {

struct LayerParameters {
  int64_t attention = 0;          // projections, and the norm inside lightning attention
  int64_t router = 0;             // and the coefficient of the shared expert
  int64_t experts = 0;            // all of them, or the dense FFN
  int64_t activated_experts = 0;  // those that one token meets
  int64_t shared = 0;             // the shared expert
  int64_t norms = 0;

  int64_t total() const { return attention + router + experts + shared + norms; }
  int64_t activated() const { return attention + router + activated_experts + shared + norms; }
};

LayerParameters CountLayerParameters(const TextConfig& config, LayerKind kind);

struct ParameterCount {
  int64_t embedding = 0;
  int64_t lm_head = 0;    // 0 where it is the embedding
  int64_t total = 0;      // all that a checkpoint stores
  int64_t activated = 0;  // those that one token meets, without embedding and lm_head
};

ParameterCount CountParameters(const TextConfig& config);

// A multiplication and an addition count as two.
struct Flops {
  double weights = 0;    // 2 for each activated parameter
  double head = 0;       // lm_head, for a token whose logits are wanted
  double lightning = 0;  // 4 d (d + r) a head and layer, r = rows since the block's border
  double softmax = 0;    // 4 d n a head and layer

  double total() const { return weights + head + lightning + softmax; }
};

// For the token that makes the context `context` >= 1 tokens long. The mean over a prefill of n
// tokens has half of the last token's softmax part.
Flops FlopsPerToken(const TextConfig& config, int64_t context);

// Of reading `n` tokens after the first `begin`, without the head: linear in n, and quadratic in
// the softmax layers.
double PrefillFlops(const TextConfig& config, int64_t begin, int64_t n);

}  // namespace mm01
