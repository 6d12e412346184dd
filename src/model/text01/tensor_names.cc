#include "model/text01/tensor_names.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>
#include <unordered_set>
#include <utility>

#include "io/checked.h"

namespace mm01 {
namespace {

using Shape = std::vector<int64_t>;

constexpr std::string_view kTextPrefix = "language_model.";
constexpr int64_t kGroups[] = {32, 64, 128};

class WantedList {
 public:
  explicit WantedList(const TextConfig& config) : c_(config) {}

  std::vector<WantedTensor> Take() && { return std::move(wanted_); }

  void Vector(std::string name, int64_t n) { Add(std::move(name), {n}, false); }
  void Weight(std::string name, int64_t out, int64_t in) { Add(std::move(name), {out, in}, true); }

  void Attention(int64_t layer) {
    const int64_t width = c_.num_heads * c_.head_dim;
    const int64_t kv_width = c_.num_kv_heads * c_.head_dim;
    auto name = [&](const char* what) { return LayerTensorName(layer, what); };
    if (c_.layers[static_cast<size_t>(layer)] == LayerKind::kLightning) {
      Weight(name("self_attn.qkv_proj"), 3 * width, c_.hidden_size);
      Weight(name("self_attn.output_gate"), width, c_.hidden_size);
      Vector(name("self_attn.norm"), width);
      Weight(name("self_attn.out_proj"), c_.hidden_size, width);
    } else {
      Weight(name("self_attn.q_proj"), width, c_.hidden_size);
      Weight(name("self_attn.k_proj"), kv_width, c_.hidden_size);
      Weight(name("self_attn.v_proj"), kv_width, c_.hidden_size);
      Weight(name("self_attn.o_proj"), c_.hidden_size, width);
    }
  }

  void Experts(int64_t layer) {
    const int64_t hidden = c_.hidden_size, ffn = c_.ffn_size;
    Add(LayerTensorName(layer, "block_sparse_moe.gate"), {c_.num_experts, hidden}, false);
    wanted_.back().sources.push_back(
        {LayerTensorName(layer, "mlp.gate"), {c_.num_experts, hidden}, 0});
    for (int64_t e = 0; e < c_.num_experts; ++e) {
      Expert(layer, e, "w1", {ffn, hidden}, "gate_up_proj", 2 * ffn, 2 * ffn * e);
      Expert(layer, e, "w2", {hidden, ffn}, "down_proj", hidden, hidden * e);
      Expert(layer, e, "w3", {ffn, hidden}, "gate_up_proj", 2 * ffn, 2 * ffn * e + ffn);
    }
  }

  void SwiGlu(int64_t layer, const std::string& block, int64_t ffn) {
    Weight(LayerTensorName(layer, block + ".gate_proj"), ffn, c_.hidden_size);
    Weight(LayerTensorName(layer, block + ".up_proj"), ffn, c_.hidden_size);
    Weight(LayerTensorName(layer, block + ".down_proj"), c_.hidden_size, ffn);
  }

  void Coefficient(int64_t layer) {
    Add(LayerTensorName(layer, "coefficient"), {1, c_.hidden_size}, false);
  }

 private:
  void Add(std::string name, Shape shape, bool is_weight) {
    wanted_.push_back({name, shape, is_weight, {{name, shape, 0}}});
  }

  // The fused tensor is [E, fused_rows, in] and holds this matrix from `first_row` on.
  void Expert(int64_t layer, int64_t e, const char* matrix, Shape shape, const char* fused,
              int64_t fused_rows, int64_t first_row) {
    const Shape fused_shape = {c_.num_experts, fused_rows, shape[1]};
    Add(ExpertTensorName(layer, e, matrix), shape, true);
    auto& sources = wanted_.back().sources;
    sources.push_back(
        {fmt::format("model.layers.{}.mlp.experts.{}.{}.weight", layer, e, matrix), shape, 0});
    for (const char* block : {"block_sparse_moe", "mlp"}) {
      sources.push_back({fmt::format("model.layers.{}.{}.experts.{}", layer, block, fused),
                         fused_shape, first_row});
    }
  }

  const TextConfig& c_;
  std::vector<WantedTensor> wanted_;
};

// What went wrong with some tensors: three in full, the others by number.
class Problems {
 public:
  void Add(std::string problem) {
    if (++count_ <= 3) shown_.push_back(std::move(problem));
  }
  int64_t count() const { return count_; }
  std::string Text(const std::string& is, const std::string& are) const {
    const int64_t others = count_ - static_cast<int64_t>(shown_.size());
    return fmt::format("{} {}: {}{}", count_, count_ == 1 ? "tensor " + is : "tensors " + are,
                       fmt::join(shown_, ", "),
                       others > 0 ? fmt::format(" and {} more", others) : "");
  }

 private:
  int64_t count_ = 0;
  std::vector<std::string> shown_;
};

class Locator {
 public:
  Locator(std::span<const StoredTensor> stored, std::string where) : where_(std::move(where)) {
    for (const StoredTensor& t : stored) has_prefix_ |= t.name.starts_with(kTextPrefix);
    for (const StoredTensor& t : stored) {
      const bool first = stored_.emplace(PlainName(t.name), &t).second;
      if (!first) twice_.Add(Quoted(t.name));
    }
  }

  Result<TensorMap> Run(const TextConfig& config) {
    TensorMap map;
    for (const WantedTensor& wanted : WantedTensors(config)) {
      map.emplace(wanted.name, Locate(wanted));
    }
    for (const auto& [name, tensor] : stored_) {
      const bool tied_head = config.tied_embeddings && name == kLmHeadName;
      if (!used_.contains(name) && !tied_head && !IsIgnored(name)) unknown_.insert(tensor->name);
    }
    MM01_RETURN_IF_ERROR(Verdict());
    return map;
  }

 private:
  std::string PlainName(const std::string& name) const {
    return name.starts_with(kTextPrefix) ? name.substr(kTextPrefix.size()) : name;
  }

  bool IsIgnored(const std::string& name) const {
    for (const char* buffer : {".slope_rate", ".query_decay", ".key_decay", ".diagonal_decay"}) {
      if (name.ends_with(buffer)) return true;
    }
    return has_prefix_ && (name.starts_with("vision_tower.") ||
                           name.starts_with("multi_modal_projector.") || name == "image_newline");
  }

  TensorLocation Locate(const WantedTensor& wanted) {
    for (const TensorSource& source : wanted.sources) {
      const auto it = stored_.find(source.name);
      if (it == stored_.end()) continue;
      const StoredTensor& found = *it->second;
      TensorLocation at{.source = found.name,
                        .dtype = found.dtype,
                        .first_row = source.first_row,
                        .rows = wanted.shape.size() == 1 ? 1 : wanted.shape[0],
                        .columns = wanted.shape.back()};
      const bool first_use = used_.insert(source.name).second;
      if (found.dtype == DType::kI8) FindScale(source.name, found, wanted, first_use, at);
      if (first_use) CheckForm(found, source.shape, wanted.is_weight);
      return at;
    }
    missing_.Add(wanted.name);
    return {};
  }

  // Each stored tensor is judged once, however many wanted ones lie in it.
  void CheckForm(const StoredTensor& found, const Shape& shape, bool is_weight) {
    const DType d = found.dtype;
    const bool is_float = d == DType::kF32 || d == DType::kBF16 || d == DType::kF16;
    if (found.shape != shape) {
      bad_.Add(fmt::format("{} is [{}], wanted [{}]", Quoted(found.name),
                           fmt::join(found.shape, ", "), fmt::join(shape, ", ")));
    } else if (!is_float && !(is_weight && d == DType::kI8)) {
      bad_.Add(fmt::format("{} is {}, wanted float32, bf16 or float16{}", Quoted(found.name),
                           ToString(d), is_weight ? ", or int8 with scales" : ""));
    }
  }

  void FindScale(const std::string& name, const StoredTensor& found, const WantedTensor& wanted,
                 bool report, TensorLocation& at) {
    if (!wanted.is_weight) return;
    const auto it = stored_.find(name + "_scale");
    if (it == stored_.end()) {
      if (report) missing_.Add(found.name + "_scale");
      return;
    }
    const StoredTensor& scale = *it->second;
    used_.insert(it->first);
    at.scale = scale.name;
    Shape shape = found.shape;
    for (const int64_t group : kGroups) {
      if (shape.empty()) break;
      shape.back() = (at.columns + group - 1) / group;
      if (scale.shape == shape && scale.dtype == DType::kBF16) {
        at.group = group;
        return;
      }
    }
    if (report) {
      bad_.Add(fmt::format(
          "{} is {} [{}], wanted bf16 with one scale for each 32, 64 or 128 of {} "
          "columns",
          Quoted(scale.name), ToString(scale.dtype), fmt::join(scale.shape, ", "), at.columns));
    }
  }

  Status Verdict() const {
    Problems unknown;
    for (const std::string& name : unknown_) unknown.Add(Quoted(name));
    const std::string stray =
        unknown.Text("has no place in this configuration", "have no place in this configuration");
    if (twice_.count() > 0) {
      return Status::Invalid(where_ + ": " + twice_.Text("is stored twice", "are stored twice"));
    }
    if (bad_.count() > 0) {
      return Status::Invalid(where_ + ": " + bad_.Text("does not fit", "do not fit"));
    }
    if (missing_.count() > 0) {  // a tensor under a strange name is both missing and stray
      const std::string lost = missing_.Text("is missing", "are missing");
      return Status::NotFound(where_ + ": " + lost + (unknown.count() > 0 ? "; " + stray : ""));
    }
    return unknown.count() > 0 ? Status::Invalid(where_ + ": " + stray) : Status::Ok();
  }

  std::string where_;
  bool has_prefix_ = false;
  std::unordered_map<std::string, const StoredTensor*> stored_;  // by name without prefix
  std::unordered_set<std::string> used_;
  std::set<std::string> unknown_;  // in order, so that errors do not depend on hashing
  Problems twice_, bad_, missing_;
};

}  // namespace

std::string LayerTensorName(int64_t layer, std::string_view what) {
  return fmt::format("model.layers.{}.{}.weight", layer, what);
}

std::string ExpertTensorName(int64_t layer, int64_t expert, std::string_view matrix) {
  return fmt::format("model.layers.{}.block_sparse_moe.experts.{}.{}.weight", layer, expert,
                     matrix);
}

std::vector<WantedTensor> WantedTensors(const TextConfig& c) {
  WantedList list(c);
  list.Weight(kEmbeddingName, c.vocab_size, c.hidden_size);
  for (int64_t i = 0; i < c.num_layers(); ++i) {
    list.Vector(LayerTensorName(i, "input_layernorm"), c.hidden_size);
    list.Attention(i);
    list.Vector(LayerTensorName(i, "post_attention_layernorm"), c.hidden_size);
    if (c.num_experts > 0) {
      list.Experts(i);
    } else {
      list.SwiGlu(i, "mlp", c.ffn_size);
    }
    if (c.shared_ffn_size > 0) {
      list.SwiGlu(i, "shared_mlp", c.shared_ffn_size);
      list.Coefficient(i);
    }
  }
  list.Vector(kFinalNormName, c.hidden_size);
  if (!c.tied_embeddings) list.Weight(kLmHeadName, c.vocab_size, c.hidden_size);
  return std::move(list).Take();
}

Result<TensorMap> LocateTensors(const TextConfig& config, std::span<const StoredTensor> stored,
                                const std::string& where) {
  return Locator(stored, where).Run(config);
}

}  // namespace mm01
