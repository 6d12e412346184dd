#include "testing/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <span>

#include "base/check.h"
#include "base/json.h"
#include "base/rng.h"
#include "io/byte_level.h"

namespace mm01 {
namespace {

// Rows of `columns` values, from row `source.first_row` on, as the type says.
void TinyStore(TinyTensors& all, const std::string& name, const TensorSource& source,
               WeightType type, const std::vector<float>& values) {
  const int64_t columns = source.shape.back();
  TinyTensor& t = TinyRoom(all, name, type.dtype, source.shape);
  if (type.dtype == DType::kF32) return TinyPut(t, source.first_row * columns, values);
  if (type.dtype == DType::kBF16) {
    std::vector<bf16> rounded;
    for (const float x : values) rounded.push_back(ToBF16(x));
    return TinyPut(t, source.first_row * columns, rounded);
  }
  std::vector<int64_t> scale_shape = source.shape;
  const int64_t groups = scale_shape.back() = (columns + type.group - 1) / type.group;
  std::vector<int8_t> q(values.size());
  std::vector<bf16> scales;
  for (size_t row = 0; row < values.size(); row += static_cast<size_t>(columns)) {
    for (int64_t at = 0; at < columns; at += type.group) {
      const size_t begin = row + static_cast<size_t>(at);
      const auto n = static_cast<size_t>(std::min(type.group, columns - at));
      QuantizeGroup(std::span(values).subspan(begin, n), std::span(q).subspan(begin, n),
                    scales.emplace_back());
    }
  }
  TinyPut(t, source.first_row * columns, q);
  TinyPut(TinyRoom(all, name + "_scale", DType::kBF16, scale_shape), source.first_row * groups,
          scales);
}

}  // namespace

TextConfig TinyConfig() {
  TextConfig c;
  c.vocab_size = 96;
  c.hidden_size = 64;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.rotary_dim = 8;
  c.rope_theta = 1e4;
  c.ffn_size = 48;
  c.num_experts = 4;
  c.num_experts_per_token = 2;
  c.layers = {LayerKind::kLightning, LayerKind::kLightning, LayerKind::kSoftmax,
              LayerKind::kLightning};
  c.softmax_residual = c.lightning_residual = c.mlp_residual = {.alpha = 1.5, .beta = 1.0};
  c.eos_ids = {2};
  return c;
}

std::vector<int32_t> TinyTokens(int64_t count, int64_t vocab_size, uint64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(RandomBits(seed, 7, static_cast<uint64_t>(i)) %
                                       static_cast<uint64_t>(vocab_size)));
  }
  return ids;
}

std::vector<float> TinyValues(const WantedTensor& wanted, bool rounded) {
  uint64_t stream = 0;
  for (const char letter : wanted.name) stream = Mix64(stream ^ static_cast<uint64_t>(letter));
  int64_t count = 1;
  for (const int64_t n : wanted.shape) count *= n;
  const bool is_norm = wanted.shape.size() == 1;
  const bool is_embedding = wanted.name == kEmbeddingName;
  const double scale =
      is_norm ? 0.1
              : (is_embedding ? 1.0 : 1.0 / std::sqrt(static_cast<double>(wanted.shape.back())));
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    const double x = scale * RandomNormal(1, stream, static_cast<uint64_t>(i));
    const auto value = static_cast<float>(is_norm ? 1.0 + x : x);
    values.push_back(rounded ? ToFloat(ToBF16(value)) : value);
  }
  return values;
}

TinyTensor& TinyRoom(TinyTensors& all, const std::string& name, DType dtype,
                     const std::vector<int64_t>& shape) {
  TinyTensor& t = all[name];
  t.info = {.name = name, .dtype = dtype, .shape = shape};
  int64_t bytes = SizeOf(dtype);
  for (const int64_t n : shape) bytes *= n;
  t.data.resize(static_cast<size_t>(bytes));
  return t;
}

TinyTensors MakeTinyTensors(const TextConfig& config, const TinyForm& form) {
  TinyTensors all;
  for (const WantedTensor& wanted : WantedTensors(config)) {
    size_t choice = 0;
    if (form.names == TinyNames::kPort) choice = wanted.sources.size() - 1;
    if (form.names == TinyNames::kPortPerExpert) {
      choice = std::min<size_t>(1, wanted.sources.size() - 1);
    }
    const TensorSource& source = wanted.sources[choice];
    const bool halved = form.type.dtype == DType::kBF16;  // then norms and routers are, too
    TinyStore(all, form.prefix + source.name, source,
              wanted.is_weight || halved ? form.type : WeightType{},
              TinyValues(wanted, form.rounded));
  }
  if (form.decay_buffers) {
    for (const char* what : {"slope_rate", "query_decay", "key_decay", "diagonal_decay"}) {
      const std::string name = std::string(form.prefix) + "model.layers.0.self_attn." + what;
      TinyRoom(all, name, DType::kF32, {config.num_heads, 1, 1});
    }
  }
  return all;
}

void WriteTinyFile(const std::string& path, const std::vector<const TinyTensor*>& tensors) {
  std::vector<TensorInfo> infos;
  for (const TinyTensor* t : tensors) infos.push_back(t->info);
  Result<SafetensorsWriter> writer = SafetensorsWriter::Create(path, infos);
  Check(writer.ok(), writer.status().message());
  for (const TinyTensor* t : tensors) Check(writer->Append(t->data).ok(), "cannot write " + path);
  Check(writer->Finish().ok(), "cannot write " + path);
}

void WriteTinyCheckpoint(const std::string& folder, const TextConfig& config,
                         const TinyTensors& tensors, int num_shards) {
  std::ofstream(folder + "/config.json") << JsonText(ToJson(config), 1);
  std::vector<std::vector<const TinyTensor*>> shards(static_cast<size_t>(num_shards));
  Json weight_map = Json::object();
  size_t next = 0;
  for (const auto& [name, tensor] : tensors) {
    const size_t shard = next++ % shards.size();
    shards[shard].push_back(&tensor);
    weight_map[name] = "part-" + std::to_string(shard) + ".safetensors";
  }
  if (num_shards == 1) return WriteTinyFile(folder + "/model.safetensors", shards[0]);
  for (size_t i = 0; i < shards.size(); ++i) {
    WriteTinyFile(folder + "/part-" + std::to_string(i) + ".safetensors", shards[i]);
  }
  std::ofstream(folder + "/model.safetensors.index.json")
      << JsonText({{"metadata", {{"total_size", 1}}}, {"weight_map", weight_map}});
}

void WriteTinyModel(const std::string& folder, const TextConfig& config, const TinyForm& form) {
  WriteTinyCheckpoint(folder, config, MakeTinyTensors(config, form));
}

void WriteTinyTokenizer(const std::string& folder) {
  Json vocab = Json::object();
  for (int b = 0; b < 256; ++b) vocab[SpellByte(static_cast<uint8_t>(b))] = b;
  vocab["he"] = 256;
  Json json = ParseJson(R"({
    "added_tokens": [{"id": 257, "content": "<end>", "special": true, "normalized": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "merges": ["h e"]}})",
                        "tokenizer.json")
                  .value();
  json["model"]["vocab"] = vocab;
  std::ofstream(folder + "/tokenizer.json") << JsonText(json);
}

}  // namespace mm01
