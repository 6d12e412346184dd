// The shape of a MiniMax-Text-01 model, or of a smaller one of the same family.
//
// Read from a config.json in either spelling: the original checkpoint's (attn_type_list,
// layernorm_*_alpha, rotary_dim, ...) or the transformers port's (layer_types, *_alpha_factor,
// rope_parameters, ...). The family allows any pattern of lightning and softmax layers, a dense FFN
// in place of experts, a shared expert, and any head dim the kernels support. docs/config.md lists
// the fields.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"

namespace mm01 {

enum class LayerKind : uint8_t { kLightning, kSoftmax };

// Which code the configuration was written for. The two compute slopes and layer factors
// differently (LightningSlopes in kernels/lightning/lightning.h).
enum class ConfigKind : uint8_t { kOriginal, kTransformers };

// y = alpha * x + beta * f(x) around one kind of sub-layer.
struct Residual {
  double alpha = 1.0;
  double beta = 1.0;

  friend bool operator==(const Residual&, const Residual&) = default;
};

struct TextConfig {
  ConfigKind kind = ConfigKind::kOriginal;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  // softmax layers; divides num_heads
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // softmax layers; the first dims of a head that RoPE turns; even
  double rope_theta = 1e7;
  int64_t ffn_size = 0;     // width of one expert, or of the dense FFN
  int64_t num_experts = 0;  // 0: a dense FFN in every layer
  int64_t num_experts_per_token = 0;
  int64_t shared_ffn_size = 0;  // width of the shared expert, 0 for none
  std::vector<LayerKind> layers;
  double norm_eps = 1e-5;
  double lightning_norm_eps = 1e-6;  // the norm inside lightning attention
  Residual softmax_residual, lightning_residual, mlp_residual;
  bool post_norm = true;                  // the residual carries the normalised value
  bool tied_embeddings = false;           // lm_head is the embedding
  int64_t max_positions = 0;              // 0 where the file does not say
  std::vector<int32_t> bos_ids, eos_ids;  // empty where the file has null

  int64_t num_layers() const { return static_cast<int64_t>(layers.size()); }
  int64_t num_softmax_layers() const;
  int64_t num_lightning_layers() const { return num_layers() - num_softmax_layers(); }

  // The family's rules on sizes; the first broken one is named with the value found and the value
  // wanted. A configuration that passes has at most 2^31 elements in any one matrix, 4,096 layers
  // and 65,536 experts in all, so that its parameters can be counted in an int64_t.
  Status Validate() const;

  friend bool operator==(const TextConfig&, const TextConfig&) = default;
};

// `where` names the source in error texts. Fields that are not known are ignored; two spellings of
// one field must agree. Of a vision-language configuration the text_config is read. The result has
// passed Validate. Errors: Invalid, or Unsupported for what other configurations may hold and this
// code does not compute (another activation, a scaled RoPE, a sliding window, ...).
Result<TextConfig> ParseTextConfig(const Json& json, const std::string& where);

// Reads `path`/config.json, or `path` itself where it is a file.
Result<TextConfig> LoadTextConfig(const std::string& path);

// In the spelling of config.kind, so that ParseTextConfig of it is the same configuration again.
Json ToJson(const TextConfig& config);

}  // namespace mm01
