#include "model/text01/config.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <utility>

#include "base/json.h"
#include "io/file.h"
#include "model/text01/config_fields.h"

namespace mm01 {
namespace {

constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxMatrix = int64_t{1} << 31;  // elements
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxExpertsInAll = 65536;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxPositions = int64_t{1} << 40;
constexpr int64_t kMaxFileBytes = 4 << 20;

constexpr const char* kLinear = "linear_attention";
constexpr const char* kFull = "full_attention";

// The spellings of one residual factor: the original's, the port's, and the port's early drafts'.
struct ResidualField {
  Residual TextConfig::*residual;
  double Residual::*factor;
  const char* original;
  const char* port;
  const char* draft;
};

constexpr ResidualField kResidualFields[] = {
    {&TextConfig::softmax_residual, &Residual::alpha, "layernorm_full_attention_alpha",
     "full_attn_alpha_factor", "layernorm_attention_alpha"},
    {&TextConfig::softmax_residual, &Residual::beta, "layernorm_full_attention_beta",
     "full_attn_beta_factor", "layernorm_attention_beta"},
    {&TextConfig::lightning_residual, &Residual::alpha, "layernorm_linear_attention_alpha",
     "linear_attn_alpha_factor", "layernorm_lightning_attention_alpha"},
    {&TextConfig::lightning_residual, &Residual::beta, "layernorm_linear_attention_beta",
     "linear_attn_beta_factor", "layernorm_lightning_attention_beta"},
    {&TextConfig::mlp_residual, &Residual::alpha, "layernorm_mlp_alpha", "mlp_alpha_factor", ""},
    {&TextConfig::mlp_residual, &Residual::beta, "layernorm_mlp_beta", "mlp_beta_factor", ""},
};

void ReadKind(ConfigFields& f, TextConfig& c) {
  const Json* type = f.Find({"model_type"});
  if (type == nullptr) {
    const bool original = f.Find({"attn_type_list"}) != nullptr;
    if (!original && f.Find({"layer_types"}) == nullptr) {
      f.Invalid("model_type is missing, wanted \"minimax_text_01\" or \"minimax\"");
    }
    c.kind = original ? ConfigKind::kOriginal : ConfigKind::kTransformers;
    return;
  }
  // MiniMax-M1 has the architecture of Text-01 under a name of its own.
  for (const char* name : {"minimax_text_01", "MiniMaxText01", "minimax_m1", "MiniMaxM1"}) {
    if (*type == name) return;
  }
  c.kind = ConfigKind::kTransformers;
  if (*type != "minimax") {
    f.Unsupported(fmt::format("model_type is {}, wanted \"minimax_text_01\" or \"minimax\"",
                              QuoteJson(*type)));
  }
}

std::vector<LayerKind> ReadAttnTypeList(ConfigFields& f, const Json& list, int64_t num_layers) {
  if (!list.is_array()) {
    f.WrongType({"attn_type_list"}, list, "an array of 0 (lightning) and 1 (softmax)");
    return {};
  }
  const auto count = static_cast<size_t>(num_layers);
  if (list.empty()) return std::vector<LayerKind>(count, LayerKind::kLightning);
  if (list.size() != count) {
    f.Invalid(fmt::format("attn_type_list has {} entries, wanted {} (num_hidden_layers) or none",
                          list.size(), num_layers));
    return {};
  }
  std::vector<LayerKind> layers;
  for (const Json& entry : list) {
    const std::optional<int64_t> type = JsonInt(entry);
    if (type != 0 && type != 1) {
      f.Invalid(fmt::format("attn_type_list[{}] is {}, wanted 0 (lightning) or 1 (softmax)",
                            layers.size(), QuoteJson(entry)));
      return {};
    }
    layers.push_back(type == 1 ? LayerKind::kSoftmax : LayerKind::kLightning);
  }
  return layers;
}

std::vector<LayerKind> ReadLayerTypes(ConfigFields& f, const Json& list, int64_t num_layers) {
  if (!list.is_array() || list.size() != static_cast<size_t>(num_layers)) {
    f.WrongType({"layer_types"}, list,
                fmt::format("an array of {} (num_hidden_layers)", num_layers));
    return {};
  }
  std::vector<LayerKind> layers;
  for (const Json& entry : list) {
    if (entry != kLinear && entry != kFull) {
      f.Invalid(fmt::format("layer_types[{}] is {}, wanted \"{}\" or \"{}\"", layers.size(),
                            QuoteJson(entry), kLinear, kFull));
      return {};
    }
    layers.push_back(entry == kFull ? LayerKind::kSoftmax : LayerKind::kLightning);
  }
  return layers;
}

void ReadLayers(ConfigFields& f, TextConfig& c) {
  const int64_t num_layers = f.Int({"num_hidden_layers"});
  if (num_layers < 1 || num_layers > kMaxLayers) {
    f.Invalid(fmt::format("num_hidden_layers is {}, wanted 1 to {}", num_layers, kMaxLayers));
    return;
  }
  const Json* list = f.Find({"attn_type_list"});
  const Json* types = f.Find({"layer_types"});
  if (list != nullptr) c.layers = ReadAttnTypeList(f, *list, num_layers);
  if (types != nullptr) {
    std::vector<LayerKind> layers = ReadLayerTypes(f, *types, num_layers);
    if (list != nullptr && layers != c.layers) {
      f.Invalid("attn_type_list and layer_types disagree, wanted one pattern of layers");
    }
    c.layers = std::move(layers);
  }
  if (list != nullptr || types != nullptr) return;
  if (c.kind == ConfigKind::kOriginal) {
    f.Invalid("attn_type_list is missing, wanted one 0 (lightning) or 1 (softmax) a layer");
    return;
  }
  for (int64_t i = 0; i < num_layers; ++i) {  // the port's default
    c.layers.push_back(i % 2 == 0 ? LayerKind::kSoftmax : LayerKind::kLightning);
  }
}

void ReadSizes(ConfigFields& f, TextConfig& c) {
  c.vocab_size = f.Int({"vocab_size"});
  c.hidden_size = f.Int({"hidden_size"});
  c.num_heads = f.Int({"num_attention_heads"});
  c.num_kv_heads = f.Int({"num_key_value_heads"}, c.num_heads);
  if (f.Find({"head_dim"}) != nullptr) {
    c.head_dim = f.Int({"head_dim"});
  } else if (c.num_heads > 0 && c.hidden_size > 0) {
    c.head_dim = c.hidden_size / c.num_heads;
    if (c.hidden_size % c.num_heads != 0) {
      f.Invalid(
          fmt::format("head_dim is missing, wanted one as hidden_size {} is no multiple of "
                      "num_attention_heads {}",
                      c.hidden_size, c.num_heads));
    }
  }
  c.norm_eps = f.Number({"rms_norm_eps"});
  c.lightning_norm_eps = f.Number({"lightning_norm_eps"}, c.lightning_norm_eps);
  c.max_positions = f.Int({"max_position_embeddings"}, 0);
  c.tied_embeddings = f.Bool({"tie_word_embeddings"}).value_or(false);
  if (f.String({"hidden_act"}, "silu") != "silu") {
    f.Unsupported(
        fmt::format("hidden_act is {}, wanted \"silu\"", QuoteJson(*f.Find({"hidden_act"}))));
  }
  if (const Json* window = f.Find({"sliding_window"})) {
    f.Unsupported(fmt::format("sliding_window is {}, wanted null", QuoteJson(*window)));
  }
}

void ReadFfn(ConfigFields& f, TextConfig& c) {
  c.ffn_size = f.Int({"intermediate_size"});
  c.num_experts = f.Int({"num_local_experts", "num_experts"}, 0);
  if (c.num_experts != 0) c.num_experts_per_token = f.Int({"num_experts_per_tok"});

  const Json* shared = f.Find({"shared_intermediate_size"});
  if (shared == nullptr) return;
  const Json list = shared->is_array() ? *shared : Json::array({*shared});
  for (const Json& entry : list) {
    const std::optional<int64_t> size = JsonInt(entry);
    if (!size) {
      f.WrongType({"shared_intermediate_size"}, entry, "an integer or an array of integers");
    } else if (entry != list.front()) {
      f.Unsupported("shared_intermediate_size differs by layer, wanted one size for all");
    } else {
      c.shared_ffn_size = *size;
    }
  }
  const std::string mode = f.String({"shared_moe_mode"}, "sigmoid");
  if (c.shared_ffn_size != 0 && mode != "sigmoid") {
    f.Unsupported(fmt::format("shared_moe_mode is {}, wanted \"sigmoid\"", QuoteJson(Json(mode))));
  }
}

// Refuses every RoPE but the plain one. The port names the type in rope_parameters, older files in
// rope_scaling.
void CheckRopeType(ConfigFields& f, const std::string& name) {
  std::optional<ConfigFields> rope = f.Object(name);
  if (!rope) return;
  const std::string type = rope->String({"rope_type", "type"}, "default");
  if (type != "default") {
    rope->Unsupported(fmt::format("rope_type is {}, wanted \"default\"", QuoteJson(Json(type))));
  }
  f.Join(*rope);
}

// rotary_dim as the port's factor gives it: truncated, but 3.0 that came out as 2.9999999 is 3.
int64_t RotaryDim(double factor, int64_t head_dim) {
  if (head_dim < 1 || head_dim > kMaxHeadDim) return 0;  // Validate names the head dim
  const double dim = factor * static_cast<double>(head_dim);
  return static_cast<int64_t>(std::floor(dim + 1e-6));
}

// A number that the port keeps in rope_parameters and older files beside it; both must agree.
std::optional<double> ReadRopeNumber(ConfigFields& f, const std::string& name) {
  std::optional<double> found;
  if (std::optional<ConfigFields> rope = f.Object("rope_parameters")) {
    if (rope->Find({name}) != nullptr) found = rope->Number({name});
    f.Join(*rope);
  }
  if (f.Find({name}) == nullptr) return found;
  const double outer = f.Number({name});
  if (found && *found != outer) {
    f.Invalid(
        fmt::format("{} is {} but {} in rope_parameters, wanted one value", name, outer, *found));
  }
  return outer;
}

void ReadRope(ConfigFields& f, TextConfig& c) {
  CheckRopeType(f, "rope_parameters");
  CheckRopeType(f, "rope_scaling");
  const std::optional<double> theta = ReadRopeNumber(f, "rope_theta");
  const std::optional<double> factor = ReadRopeNumber(f, "partial_rotary_factor");
  if (theta) {
    c.rope_theta = *theta;
  } else if (c.num_softmax_layers() > 0) {
    f.Invalid("rope_theta is missing");
  }
  if (factor && !(*factor > 0 && *factor <= 1)) {
    f.Invalid(fmt::format("partial_rotary_factor is {}, wanted above 0 and at most 1", *factor));
    return;
  }
  c.rotary_dim = factor ? RotaryDim(*factor, c.head_dim) : c.head_dim;
  if (f.Find({"rotary_dim"}) == nullptr) return;
  const int64_t given = f.Int({"rotary_dim"});
  if (factor && given != c.rotary_dim) {
    f.Invalid(fmt::format("rotary_dim is {} but partial_rotary_factor {} of head_dim {} is {}",
                          given, *factor, c.head_dim, c.rotary_dim));
  }
  c.rotary_dim = given;
}

void ReadResiduals(ConfigFields& f, TextConfig& c) {
  for (const ResidualField& field : kResidualFields) {
    FieldNames names = {field.original, field.port};
    if (*field.draft != '\0') names.push_back(field.draft);
    c.*field.residual.*field.factor = f.Number(names, 1.0);
  }
  const std::optional<bool> post_norm = f.Bool({"postnorm", "residual_post_norm"});
  c.post_norm = post_norm.value_or(c.kind == ConfigKind::kTransformers);
}

std::vector<int32_t> ReadIds(ConfigFields& f, const std::string& name) {
  const Json* value = f.Find({name});
  if (value == nullptr) return {};
  std::vector<int32_t> ids;
  for (const Json& entry : value->is_array() ? *value : Json::array({*value})) {
    const std::optional<int64_t> id = JsonInt(entry);
    if (!id || *id < 0 || *id > kMaxSize) {
      f.WrongType({name}, entry, "a token id, an array of token ids, or null");
      return {};
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

struct NumberRange {
  const char* name;
  int64_t value, min, max;
};

struct Product {
  const char* name;
  int64_t rows, columns;
};

Status CheckNumber(const std::string& name, double value, double max) {
  if (value > 0 && value <= max) return Status::Ok();
  return Status::Invalid(fmt::format("{} is {}, wanted above 0 and at most {}", name, value, max));
}

Status CheckSizes(const TextConfig& c) {
  const NumberRange ranges[] = {
      {"num_hidden_layers", c.num_layers(), 1, kMaxLayers},
      {"vocab_size", c.vocab_size, 1, kMaxSize},
      {"hidden_size", c.hidden_size, 1, kMaxSize},
      {"num_attention_heads", c.num_heads, 1, kMaxSize},
      {"num_key_value_heads", c.num_kv_heads, 1, c.num_heads},
      {"head_dim", c.head_dim, 1, kMaxHeadDim},
      {"rotary_dim", c.rotary_dim, 0, c.head_dim},
      {"intermediate_size", c.ffn_size, 1, kMaxSize},
      {"shared_intermediate_size", c.shared_ffn_size, 0, kMaxSize},
      {"num_local_experts", c.num_experts, 0,
       kMaxExpertsInAll / std::max<int64_t>(1, c.num_layers())},
      {"num_experts_per_tok", c.num_experts_per_token, c.num_experts > 0 ? 1 : 0, c.num_experts},
      {"max_position_embeddings", c.max_positions, 0, kMaxPositions},
  };
  for (const NumberRange& r : ranges) {
    if (r.value < r.min || r.value > r.max) {
      return Status::Invalid(
          fmt::format("{} is {}, wanted {} to {}", r.name, r.value, r.min, r.max));
    }
  }
  // Each factor is below 2^31 and head_dim at most 2^12, so that no product below overflows.
  const Product matrices[] = {
      {"vocab_size x hidden_size", c.vocab_size, c.hidden_size},
      {"intermediate_size x hidden_size", c.ffn_size, c.hidden_size},
      {"shared_intermediate_size x hidden_size", c.shared_ffn_size, c.hidden_size},
      {"3 x num_attention_heads x head_dim x hidden_size", 3 * c.num_heads * c.head_dim,
       c.hidden_size},
  };
  for (const Product& m : matrices) {
    if (m.rows > kMaxMatrix / m.columns) {
      return Status::Invalid(fmt::format("{} is {} x {}, wanted a product of at most {}", m.name,
                                         m.rows, m.columns, kMaxMatrix));
    }
  }
  return Status::Ok();
}

Json IdsToJson(const std::vector<int32_t>& ids) {
  if (ids.empty()) return nullptr;
  if (ids.size() == 1) return ids.front();
  return ids;
}

void WriteOriginal(const TextConfig& c, Json& json) {
  json["architectures"] = {"MiniMaxText01ForCausalLM"};
  json["model_type"] = "minimax_text_01";
  Json list = Json::array();
  for (LayerKind kind : c.layers) list.push_back(kind == LayerKind::kSoftmax ? 1 : 0);
  json["attn_type_list"] = std::move(list);
  json["rope_theta"] = c.rope_theta;
  json["postnorm"] = c.post_norm;
  for (const ResidualField& f : kResidualFields) json[f.original] = c.*f.residual.*f.factor;
}

void WritePort(const TextConfig& c, Json& json) {
  json["architectures"] = {"MiniMaxForCausalLM"};
  json["model_type"] = "minimax";
  Json types = Json::array();
  for (LayerKind kind : c.layers) types.push_back(kind == LayerKind::kSoftmax ? kFull : kLinear);
  json["layer_types"] = std::move(types);
  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", c.rope_theta}};
  if (c.rotary_dim > 0) {
    json["rope_parameters"]["partial_rotary_factor"] =
        static_cast<double>(c.rotary_dim) / static_cast<double>(c.head_dim);
  }
  for (const ResidualField& f : kResidualFields) json[f.port] = c.*f.residual.*f.factor;
}

}  // namespace

int64_t TextConfig::num_softmax_layers() const {
  return std::count(layers.begin(), layers.end(), LayerKind::kSoftmax);
}

Status TextConfig::Validate() const {
  MM01_RETURN_IF_ERROR(CheckSizes(*this));
  if (num_heads % num_kv_heads != 0) {
    return Status::Invalid(
        fmt::format("num_key_value_heads is {}, wanted a divisor of {} "
                    "(num_attention_heads)",
                    num_kv_heads, num_heads));
  }
  if (num_softmax_layers() > 0 && (rotary_dim == 0 || rotary_dim % 2 != 0)) {
    return Status::Invalid(fmt::format(
        "rotary_dim is {}, wanted an even number from 2 to {} (head_dim)", rotary_dim, head_dim));
  }
  MM01_RETURN_IF_ERROR(CheckNumber("rope_theta", rope_theta, 1e30));
  MM01_RETURN_IF_ERROR(CheckNumber("rms_norm_eps", norm_eps, 1));
  MM01_RETURN_IF_ERROR(CheckNumber("lightning_norm_eps", lightning_norm_eps, 1));
  const bool port = kind == ConfigKind::kTransformers;
  for (const ResidualField& f : kResidualFields) {
    MM01_RETURN_IF_ERROR(CheckNumber(port ? f.port : f.original, this->*f.residual.*f.factor, 1e6));
  }
  if (port && !post_norm) {
    return Status::Unsupported(
        "postnorm is false, wanted true in a configuration of model_type "
        "\"minimax\"");
  }
  for (const auto& [name, ids] :
       {std::pair("bos_token_id", &bos_ids), {"eos_token_id", &eos_ids}}) {
    for (const int32_t id : *ids) {
      if (id >= 0 && id < vocab_size) continue;
      return Status::Invalid(
          fmt::format("{} is {}, wanted 0 to {} (vocab_size - 1)", name, id, vocab_size - 1));
    }
  }
  return Status::Ok();
}

Result<TextConfig> ParseTextConfig(const Json& json, const std::string& where) {
  if (!json.is_object()) {
    return Status::Invalid(fmt::format("{} holds {}, wanted an object", where, QuoteJson(json)));
  }
  const auto text = json.find("text_config");
  const bool nested = text != json.end() && text->is_object();
  const std::string place = nested ? where + ": text_config" : where;
  ConfigFields f(nested ? *text : json, place);
  TextConfig c;
  // Each step may rely on what those before it have read, so the first error ends the reading.
  for (auto* read : {ReadKind, ReadLayers, ReadSizes, ReadFfn, ReadRope, ReadResiduals}) {
    read(f, c);
    MM01_RETURN_IF_ERROR(f.status());
  }
  c.bos_ids = ReadIds(f, "bos_token_id");
  c.eos_ids = ReadIds(f, "eos_token_id");
  MM01_RETURN_IF_ERROR(f.status());
  if (Status s = c.Validate(); !s.ok()) return Status(s.code(), place + ": " + s.message());
  return c;
}

Result<TextConfig> LoadTextConfig(const std::string& path) {
  std::error_code ignored;
  const bool is_file = std::filesystem::is_regular_file(path, ignored);
  const std::string file = is_file ? path : (std::filesystem::path(path) / "config.json").string();
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxFileBytes));
  MM01_ASSIGN_OR_RETURN(const Json json, ParseJson(text, file));
  return ParseTextConfig(json, file);
}

Json ToJson(const TextConfig& c) {
  Json json;
  c.kind == ConfigKind::kOriginal ? WriteOriginal(c, json) : WritePort(c, json);
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.hidden_size;
  json["num_hidden_layers"] = c.num_layers();
  json["num_attention_heads"] = c.num_heads;
  json["num_key_value_heads"] = c.num_kv_heads;
  json["head_dim"] = c.head_dim;
  json["rotary_dim"] = c.rotary_dim;
  json["intermediate_size"] = c.ffn_size;
  json["num_local_experts"] = c.num_experts;
  if (c.num_experts > 0) json["num_experts_per_tok"] = c.num_experts_per_token;
  json["shared_intermediate_size"] = c.shared_ffn_size;
  json["hidden_act"] = "silu";
  json["rms_norm_eps"] = c.norm_eps;
  if (c.lightning_norm_eps != TextConfig().lightning_norm_eps) {
    json["lightning_norm_eps"] = c.lightning_norm_eps;
  }
  if (c.max_positions > 0) json["max_position_embeddings"] = c.max_positions;
  json["tie_word_embeddings"] = c.tied_embeddings;
  json["bos_token_id"] = IdsToJson(c.bos_ids);
  json["eos_token_id"] = IdsToJson(c.eos_ids);
  return json;
}

}  // namespace mm01
