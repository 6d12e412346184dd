// The shape of a MiniMax-Text-01 model, or of a smaller one of the same family.
//
// Read from a config.json in either spelling: the original checkpoint's (attn_type_list,
// layernorm_*_alpha, rotary_dim, ...) or the transformers port's (layer_types, *_alpha_factor,
// rope_parameters, ...). The family allows any pattern of lightning and softmax layers, a dense FFN
// in place of experts, a shared expert, and any head dim the kernels support.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace mm01 {

enum class LayerKind : uint8_t { kLightning, kSoftmax };

// Which code the configuration was written for. The two compute slopes and layer factors differently
// (LightningSlopes in kernels/lightning/lightning.h).
enum class ConfigKind : uint8_t { kOriginal, kTransformers };

// y = alpha * x + beta * f(x) around one kind of sub-layer.
struct Residual {
  double alpha = 1.0;
  double beta = 1.0;
};

struct TextConfig {
  ConfigKind kind = ConfigKind::kOriginal;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;   // softmax layers; divides num_heads
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;     // the first dims of a head that RoPE turns; even, at most head_dim
  double rope_theta = 1e7;
  int64_t ffn_size = 0;       // width of one expert, or of the dense FFN
  int64_t num_experts = 0;    // 0: a dense FFN in every layer
  int64_t num_experts_per_token = 0;
  int64_t shared_ffn_size = 0;  // width of the shared expert, 0 for none
  std::vector<LayerKind> layers;
  double norm_eps = 1e-5;
  double lightning_norm_eps = 1e-6;  // the norm inside lightning attention
  Residual softmax_residual, lightning_residual, mlp_residual;
  bool post_norm = true;  // the residual carries the normalised value
  int64_t max_positions = 0;
  std::vector<int32_t> bos_ids, eos_ids;  // empty where the file has null

  int64_t num_layers() const { return static_cast<int64_t>(layers.size()); }
  int64_t num_softmax_layers() const;
  int64_t num_lightning_layers() const { return num_layers() - num_softmax_layers(); }

  // The family's rules on sizes, each broken one named with the value found and the value wanted.
  Status Validate() const;
};

// `where` names the source in error texts. The result has passed Validate.
Result<TextConfig> ParseTextConfig(const Json& json, const std::string& where);
Result<TextConfig> LoadTextConfig(const std::string& model_dir);  // reads model_dir/config.json

// The configuration in the original checkpoint's spelling, readable by ParseTextConfig.
Json ToJson(const TextConfig& config);

}  // namespace mm01
