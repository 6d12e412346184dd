#include "eval/bench_tools.h"

#include <chrono>
#include <utility>

#include "base/rng.h"

namespace mm01::eval {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<int32_t> RandomTokens(uint64_t stream, int64_t count, int64_t vocabulary) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(RandomBits(3, stream, static_cast<uint64_t>(i)) %
                                       static_cast<uint64_t>(vocabulary)));
  }
  return ids;
}

TextConfig Text01Layers(std::vector<LayerKind> layers, int64_t vocabulary) {
  TextConfig c;
  c.vocab_size = vocabulary;
  c.hidden_size = 6144;
  c.num_heads = 64;
  c.num_kv_heads = 8;
  c.head_dim = 128;
  c.rotary_dim = 64;
  c.ffn_size = 9216;
  c.num_experts = 32;
  c.num_experts_per_token = 2;
  c.layers = std::move(layers);
  c.softmax_residual = c.lightning_residual =
      c.mlp_residual = {.alpha = 3.5565588200778455, .beta = 1.0};
  return c;
}

}  // namespace mm01::eval
