#include "model/text01/weights.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <memory>
#include <mutex>

#include "base/rng.h"
#include "kernels/lightning/lightning.h"

namespace mm01 {
namespace {

constexpr WeightType kFloat32{};

// A part of a wanted matrix: which of its rows, in order, and which of its columns.
struct Part {
  std::vector<Range> rows;
  Range columns;

  int64_t num_rows() const {
    int64_t n = 0;
    for (const Range& r : rows) n += r.size();
    return n;
  }
  int64_t Row(int64_t i) const {
    for (const Range& r : rows) {
      if (i < r.size()) return r.begin + i;
      i -= r.size();
    }
    Fail("a row outside the part");
  }
};

// Fills weights either from a checkpoint or from a seed, the model's structure being walked once
// for both (Build).
class Source {
 public:
  virtual ~Source() = default;
  virtual Status Fill(const std::string& name, const Part& part, Weight& weight) = 0;
  virtual Status Fill(const std::string& name, Range columns, std::vector<float>& values) = 0;
};

// Calls set(first, end, first_out, out) for pieces of rows of `weight`, from several threads: rows
// first .. end-1 are to be set as rows of `out`, counted from first_out. On the CPU `out` is the
// weight itself and a piece is a panel, so that no two threads write to one cache line; on the way
// to a GPU it is a staging of some rows.
template <typename Set>
Status FillRows(Queue& queue, Weight& weight, const Set& set) {
  std::mutex mutex;  // guards failure
  Status failure;
  const auto fill = [&](int64_t begin, int64_t end, Weight& out, int64_t origin) {
    queue.pool().ParallelFor((end - begin + kPanel - 1) / kPanel, [&](int64_t panel, int) {
      const int64_t first = begin + panel * kPanel;
      const Status s = set(first, std::min(end, first + kPanel), out, origin);
      if (s.ok()) return;
      std::lock_guard lock(mutex);
      failure = s;
    });
  };
  if (weight.device() == Device::kCpu) {
    fill(0, weight.n(), weight, 0);
    return failure;
  }
  constexpr int64_t kStagingBytes = 64 << 20;
  const int64_t row = weight.bytes() / weight.n();
  const int64_t rows = std::clamp<int64_t>(kStagingBytes / row, 1, weight.n());
  Weight staging = Weight::Staging(weight.type(), rows, weight.k());
  for (int64_t at = 0; at < weight.n() && failure.ok(); at += rows) {
    const int64_t end = std::min(weight.n(), at + rows);
    fill(at, end, staging, at);
    weight.CopyRows(queue, at, staging, end - at);
  }
  return failure;
}

class CheckpointSource : public Source {
 public:
  CheckpointSource(Queue& queue, const Checkpoint& checkpoint, const TensorMap& map,
                   const LoadProgress& progress)
      : queue_(queue), checkpoint_(checkpoint), map_(map), progress_(progress) {}

  Status Fill(const std::string& name, const Part& part, Weight& weight) override {
    const TensorLocation& at = map_.at(name);
    const CheckpointTensor tensor = checkpoint_.Find(at.source);
    std::vector<bf16> scales;
    const int64_t groups = at.group ? (at.columns + at.group - 1) / at.group : 0;
    if (at.group) MM01_RETURN_IF_ERROR(ReadScales(at, groups, scales));

    const Status filled =
        FillRows(queue_, weight, [&](int64_t first, int64_t end, Weight& out, int64_t origin) {
          return SetRows(at, tensor, part, scales, groups, first, end, out, origin);
        });
    Report(weight.n() * at.columns * SizeOf(at.dtype));
    return filled;
  }

  Status Fill(const std::string& name, Range columns, std::vector<float>& values) override {
    const TensorLocation& at = map_.at(name);
    std::vector<std::byte> raw(static_cast<size_t>(at.rows * at.columns * SizeOf(at.dtype)));
    const int64_t offset = at.first_row * at.columns * SizeOf(at.dtype);
    MM01_RETURN_IF_ERROR(checkpoint_.Read(checkpoint_.Find(at.source), offset, raw));
    std::vector<float> all(static_cast<size_t>(at.rows * at.columns));
    Convert(at, raw.data(), all);
    values.assign(all.begin() + columns.begin, all.begin() + columns.end);
    Report(static_cast<int64_t>(raw.size()));
    return Status::Ok();
  }

 private:
  Status ReadScales(const TensorLocation& at, int64_t groups, std::vector<bf16>& scales) {
    scales.resize(static_cast<size_t>(at.rows * groups));
    return checkpoint_.Read(checkpoint_.Find(at.scale),
                            at.first_row * groups * SizeOf(DType::kBF16),
                            std::as_writable_bytes(std::span(scales)));
  }

  static void Convert(const TensorLocation& at, const std::byte* raw, std::span<float> out) {
    const auto each = [&]<typename T>(const T*, auto to_float) {
      for (size_t i = 0; i < out.size(); ++i) {
        T x;
        std::memcpy(&x, raw + i * sizeof(T), sizeof(T));
        out[i] = to_float(x);
      }
    };
    switch (at.dtype) {
      case DType::kF32:
        return each(static_cast<float*>(nullptr), [](float x) { return x; });
      case DType::kBF16:
        return each(static_cast<bf16*>(nullptr), [](bf16 x) { return ToFloat(x); });
      case DType::kF16:
        return each(static_cast<uint16_t*>(nullptr), HalfToFloat);
      default:
        Fail("LocateTensors let a type through that cannot be read: " + ToString(at.dtype));
    }
  }

  // Rows first .. end-1 of the part, as rows of `weight` counted from `origin`.
  Status SetRows(const TensorLocation& at, const CheckpointTensor& tensor, const Part& part,
                 std::span<const bf16> scales, int64_t groups, int64_t first, int64_t end,
                 Weight& weight, int64_t origin) {
    const int64_t width = part.columns.size(), size = SizeOf(at.dtype);
    std::vector<std::byte> raw(static_cast<size_t>(width * size));
    std::vector<float> row(static_cast<size_t>(width));
    for (int64_t i = first; i < end; ++i) {
      const int64_t from = part.Row(i);
      const int64_t offset = ((at.first_row + from) * at.columns + part.columns.begin) * size;
      MM01_RETURN_IF_ERROR(checkpoint_.Read(tensor, offset, raw));
      if (!at.group) {
        Convert(at, raw.data(), row);
        MM01_RETURN_IF_ERROR(SetRow(at, row, i - origin, weight));
        continue;
      }
      const auto* q = reinterpret_cast<const int8_t*>(raw.data());
      const auto row_scales =
          scales.subspan(static_cast<size_t>(from * groups), static_cast<size_t>(groups));
      if (weight.type().group == at.group && part.columns.begin % at.group == 0) {
        weight.SetRow(i - origin, {q, static_cast<size_t>(width)},
                      row_scales.subspan(static_cast<size_t>(part.columns.begin / at.group),
                                         static_cast<size_t>(weight.num_groups())));
        continue;
      }
      for (int64_t j = 0; j < width; ++j) {
        const auto group = static_cast<size_t>((part.columns.begin + j) / at.group);
        row[static_cast<size_t>(j)] = static_cast<float>(q[j]) * ToFloat(row_scales[group]);
      }
      MM01_RETURN_IF_ERROR(SetRow(at, row, i - origin, weight));
    }
    return Status::Ok();
  }

  // int8 has no value for an infinity or a NaN, and would hide that the checkpoint is broken.
  Status SetRow(const TensorLocation& at, std::span<const float> row, int64_t i, Weight& weight) {
    const bool is_int8 = weight.type().dtype == DType::kI8;
    if (is_int8 && !std::ranges::all_of(row, [](float x) { return std::isfinite(x); })) {
      return Status::Invalid(
          fmt::format("{}: {} holds an infinity or a NaN, wanted numbers to "
                      "quantize",
                      checkpoint_.path(), at.source));
    }
    weight.SetRow(i, row);
    return Status::Ok();
  }

  void Report(int64_t bytes) {
    done_ += bytes;
    if (progress_) progress_(done_, std::max(done_, checkpoint_.total_bytes()));
  }

  Queue& queue_;
  const Checkpoint& checkpoint_;
  const TensorMap& map_;
  const LoadProgress& progress_;
  int64_t done_ = 0;
};

Status FillRandom(Queue& queue, uint64_t stream, Weight& weight) {
  // Uniform numbers whose variance is 1 / inputs keep activations near 1.
  const float scale = std::sqrt(12.0f / static_cast<float>(weight.k()));
  return FillRows(queue, weight, [&](int64_t first, int64_t end, Weight& out, int64_t origin) {
    std::vector<float> row(static_cast<size_t>(weight.k()));
    for (int64_t i = first; i < end; ++i) {
      uint64_t x = Mix64(stream ^ static_cast<uint64_t>(i));
      for (float& w : row) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        w = (static_cast<float>(x >> 40) * 0x1p-24f - 0.5f) * scale;
      }
      out.SetRow(i - origin, row);
    }
    return Status::Ok();
  });
}

class RandomSource : public Source {
 public:
  RandomSource(Queue& queue, uint64_t seed) : queue_(queue), seed_(seed) {}

  Status Fill(const std::string& name, const Part&, Weight& weight) override {
    return FillRandom(queue_, Mix64(seed_ ^ std::hash<std::string>()(name)), weight);
  }

  Status Fill(const std::string&, Range columns, std::vector<float>& values) override {
    values.assign(static_cast<size_t>(columns.size()), 1.0f);
    return Status::Ok();
  }

 private:
  Queue& queue_;
  uint64_t seed_;
};

// Walks the model in the order of the forward pass.
class WeightsBuilder {
 public:
  WeightsBuilder(Queue& queue, Source& source, TextWeights& weights)
      : queue_(queue), source_(source), w_(weights), c_(weights.config) {}

  Status Build() {
    const int64_t d = c_.hidden_size;
    MM01_RETURN_IF_ERROR(Matrix(kEmbeddingName, {{{0, c_.vocab_size}}, {0, d}}, w_.embedding));
    w_.layers.resize(static_cast<size_t>(c_.num_layers()));
    for (int64_t i = 0; i < c_.num_layers(); ++i) MM01_RETURN_IF_ERROR(Layer(i));
    MM01_RETURN_IF_ERROR(Vector(kFinalNormName, {0, d}, w_.final_norm));
    if (!c_.tied_embeddings) {
      MM01_RETURN_IF_ERROR(Matrix(kLmHeadName, {{{0, c_.vocab_size}}, {0, d}}, w_.lm_head));
    }
    w_.vocab_used = c_.vocab_size;
    return Status::Ok();
  }

 private:
  Status Matrix(const std::string& name, const Part& part, Weight& out, bool exact = false) {
    if (out.empty()) {
      out =
          Weight(exact ? kFloat32 : w_.type, part.num_rows(), part.columns.size(), queue_.device());
    }
    return source_.Fill(name, part, out);
  }

  Status Vector(const std::string& name, Range columns, Parameters& out) {
    std::vector<float> values;
    MM01_RETURN_IF_ERROR(source_.Fill(name, columns, values));
    out = Parameters(queue_, std::move(values));
    return Status::Ok();
  }

  Status Layer(int64_t i) {
    TextLayer& layer = w_.layers[static_cast<size_t>(i)];
    layer.kind = c_.layers[static_cast<size_t>(i)];
    const Range all{0, c_.hidden_size};
    MM01_RETURN_IF_ERROR(Vector(LayerTensorName(i, "input_layernorm"), all, layer.input_norm));
    MM01_RETURN_IF_ERROR(
        Vector(LayerTensorName(i, "post_attention_layernorm"), all, layer.mlp_norm));
    MM01_RETURN_IF_ERROR(layer.kind == LayerKind::kLightning ? Lightning(i, layer.lightning)
                                                             : Softmax(i, layer.softmax));
    return Mlp(i, layer.mlp);
  }

  Status Lightning(int64_t i, LightningLayer& l) {
    const int64_t d = c_.hidden_size, dim = c_.head_dim;
    const Range heads = w_.shard.heads;
    const Range mine{heads.begin * dim, heads.end * dim};
    MM01_RETURN_IF_ERROR(Matrix(LayerTensorName(i, "self_attn.qkv_proj"),
                                {{{3 * mine.begin, 3 * mine.end}}, {0, d}}, l.qkv));
    MM01_RETURN_IF_ERROR(
        Matrix(LayerTensorName(i, "self_attn.output_gate"), {{mine}, {0, d}}, l.gate));
    MM01_RETURN_IF_ERROR(Matrix(LayerTensorName(i, "self_attn.out_proj"), {{{0, d}}, mine}, l.out));
    MM01_RETURN_IF_ERROR(Vector(LayerTensorName(i, "self_attn.norm"), mine, l.norm));
    const SlopeRule rule =
        c_.kind == ConfigKind::kOriginal ? SlopeRule::kOriginal : SlopeRule::kTransformers;
    const std::vector<float> slopes = LightningSlopes(rule, c_.num_heads, i, c_.num_layers());
    l.slope = Parameters(queue_, {slopes.begin() + heads.begin, slopes.begin() + heads.end});
    return Status::Ok();
  }

  Status Softmax(int64_t i, SoftmaxLayer& l) {
    const int64_t d = c_.hidden_size, dim = c_.head_dim;
    const Range q{w_.shard.heads.begin * dim, w_.shard.heads.end * dim};
    const Range kv{w_.shard.kv_heads.begin * dim, w_.shard.kv_heads.end * dim};
    MM01_RETURN_IF_ERROR(Matrix(LayerTensorName(i, "self_attn.q_proj"), {{q}, {0, d}}, l.q));
    MM01_RETURN_IF_ERROR(Matrix(LayerTensorName(i, "self_attn.k_proj"), {{kv}, {0, d}}, l.k));
    MM01_RETURN_IF_ERROR(Matrix(LayerTensorName(i, "self_attn.v_proj"), {{kv}, {0, d}}, l.v));
    return Matrix(LayerTensorName(i, "self_attn.o_proj"), {{{0, d}}, q}, l.out);
  }

  // The matrices of one SwiGLU in the order w1 (gate), w3 (up), w2 (down).
  Status SwiGlu(const std::string& w1, const std::string& w3, const std::string& w2, int64_t width,
                ExpertWeights& e) {
    const int64_t d = c_.hidden_size;
    MM01_RETURN_IF_ERROR(Matrix(w1, {{{0, width}}, {0, d}}, e.w1));
    MM01_RETURN_IF_ERROR(Matrix(w3, {{{0, width}}, {0, d}}, e.w3));
    return Matrix(w2, {{{0, d}}, {0, width}}, e.w2);
  }

  Status Mlp(int64_t i, MlpLayer& mlp) {
    const int64_t d = c_.hidden_size;
    if (c_.num_experts == 0) {
      mlp.experts.resize(1);
      return SwiGlu(LayerTensorName(i, "mlp.gate_proj"), LayerTensorName(i, "mlp.up_proj"),
                    LayerTensorName(i, "mlp.down_proj"), c_.ffn_size, mlp.experts[0]);
    }
    // float32 whatever the others are: a rounded router logit can change who gets the token.
    MM01_RETURN_IF_ERROR(Matrix(LayerTensorName(i, "block_sparse_moe.gate"),
                                {{{0, c_.num_experts}}, {0, d}}, mlp.router, true));
    MakeExperts(mlp.experts);
    for (int64_t e = w_.shard.experts.begin; e < w_.shard.experts.end; ++e) {
      MM01_RETURN_IF_ERROR(SwiGlu(ExpertTensorName(i, e, "w1"), ExpertTensorName(i, e, "w3"),
                                  ExpertTensorName(i, e, "w2"), c_.ffn_size,
                                  mlp.experts[static_cast<size_t>(e - w_.shard.experts.begin)]));
    }
    if (c_.shared_ffn_size == 0) return Status::Ok();
    MM01_RETURN_IF_ERROR(
        SwiGlu(LayerTensorName(i, "shared_mlp.gate_proj"), LayerTensorName(i, "shared_mlp.up_proj"),
               LayerTensorName(i, "shared_mlp.down_proj"), c_.shared_ffn_size, mlp.shared));
    return Matrix(LayerTensorName(i, "coefficient"), {{{0, 1}}, {0, d}}, mlp.shared_coefficient,
                  true);
  }

  // One expert's matrices beside the next one's.
  void MakeExperts(std::vector<ExpertWeights>& experts) {
    const int64_t count = w_.shard.experts.size(), f = c_.ffn_size, d = c_.hidden_size;
    experts.resize(static_cast<size_t>(count));
    if (queue_.device() == Device::kCpu) return;
    std::vector<Weight> w1 = Weight::Stack(count, w_.type, f, d, queue_.device());
    std::vector<Weight> w3 = Weight::Stack(count, w_.type, f, d, queue_.device());
    std::vector<Weight> w2 = Weight::Stack(count, w_.type, d, f, queue_.device());
    for (size_t e = 0; e < experts.size(); ++e) {
      experts[e] = {.w1 = std::move(w1[e]), .w2 = std::move(w2[e]), .w3 = std::move(w3[e])};
    }
  }

  Queue& queue_;
  Source& source_;
  TextWeights& w_;
  const TextConfig& c_;
};

}  // namespace

Shard Shard::Whole(const TextConfig& config) {
  return {.heads = {0, config.num_heads},
          .kv_heads = {0, config.num_kv_heads},
          .experts = {0, config.num_experts}};
}

Result<Shard> Shard::Of(const TextConfig& config, const Mesh& mesh) {
  const int64_t tensor = mesh.tensor->size(), expert = mesh.expert->size();
  const int64_t most_kv = std::max(config.num_kv_heads, tensor);
  const int64_t least_kv = std::min(config.num_kv_heads, tensor);
  if (config.num_heads % tensor != 0 || most_kv % least_kv != 0) {
    return Status::Unsupported(
        fmt::format("{} heads and {} kv heads cannot be split over {} tensor ranks",
                    config.num_heads, config.num_kv_heads, tensor));
  }
  if (config.num_experts % expert != 0) {
    return Status::Unsupported(
        fmt::format("{} experts cannot be split evenly over {} ranks", config.num_experts, expert));
  }
  Shard shard = Whole(config);
  shard.heads = SplitEvenly(config.num_heads, tensor, mesh.tensor->rank());
  const int64_t group = config.num_heads / config.num_kv_heads;
  shard.kv_heads = {shard.heads.begin / group, (shard.heads.end - 1) / group + 1};
  shard.experts = SplitEvenly(config.num_experts, expert, mesh.expert->rank());
  return shard;
}

Parameters::Parameters(Queue& queue, std::vector<float> values) : values_(std::move(values)) {
  if (queue.device() == Device::kCpu) return;
  const auto bytes = static_cast<int64_t>(values_.size() * sizeof(float));
  copy_ = Buffer(bytes, queue.device());
  queue.CopyToDevice(copy_.data(), values_.data(), bytes);
}

Tensor Parameters::tensor() const {
  const float* data = copy_.bytes() > 0 ? copy_.As<float>() : values_.data();
  return Tensor(data, {static_cast<int64_t>(values_.size())});
}

int64_t TextWeights::bytes() const {
  int64_t sum = embedding.bytes() + lm_head.bytes();
  const auto floats = [](const Parameters& p) {
    return static_cast<int64_t>(p.values().size() * sizeof(float));
  };
  const auto expert = [](const ExpertWeights& e) {
    return e.w1.bytes() + e.w2.bytes() + e.w3.bytes();
  };
  for (const TextLayer& l : layers) {
    sum += floats(l.input_norm) + floats(l.mlp_norm) + floats(l.lightning.norm);
    sum += l.lightning.qkv.bytes() + l.lightning.gate.bytes() + l.lightning.out.bytes();
    sum += l.softmax.q.bytes() + l.softmax.k.bytes() + l.softmax.v.bytes() + l.softmax.out.bytes();
    sum += l.mlp.router.bytes() + expert(l.mlp.shared) + l.mlp.shared_coefficient.bytes();
    for (const ExpertWeights& e : l.mlp.experts) sum += expert(e);
  }
  return sum + floats(final_norm);
}

WeightType StoredWeightType(const TensorMap& map) {
  const auto any_int8 = std::find_if(map.begin(), map.end(),
                                     [](const auto& entry) { return entry.second.group != 0; });
  if (any_int8 != map.end()) return {DType::kI8, any_int8->second.group};
  const DType stored = map.at(kEmbeddingName).dtype;
  // float16 has bits that bf16 has not.
  return {stored == DType::kBF16 ? DType::kBF16 : DType::kF32, 0};
}

Result<TextWeights> LoadWeights(Queue& queue, const Checkpoint& checkpoint,
                                const TextConfig& config, WeightType type, const Shard& shard,
                                const LoadProgress& progress) {
  std::vector<StoredTensor> stored;
  for (const CheckpointTensor& t : checkpoint.tensors()) {
    stored.push_back({t.info->name, t.info->dtype, t.info->shape});
  }
  MM01_ASSIGN_OR_RETURN(const TensorMap map, LocateTensors(config, stored, checkpoint.path()));
  TextWeights weights{.config = config, .type = type, .shard = shard};
  CheckpointSource source(queue, checkpoint, map, progress);
  MM01_RETURN_IF_ERROR(WeightsBuilder(queue, source, weights).Build());
  MM01_RETURN_IF_ERROR(checkpoint.CheckUnchanged());
  return weights;
}

Weight RandomMatrix(Queue& queue, WeightType type, int64_t n, int64_t k, uint64_t seed) {
  Weight w(type, n, k, queue.device());
  const Status status = FillRandom(queue, Mix64(seed), w);
  Check(status.ok(), status.message());
  return w;
}

TextWeights RandomWeights(Queue& queue, const TextConfig& config, WeightType type, uint64_t seed) {
  TextWeights weights{.config = config, .type = type, .shard = Shard::Whole(config)};
  RandomSource source(queue, seed);
  const Status status = WeightsBuilder(queue, source, weights).Build();
  Check(status.ok(), status.message());
  return weights;
}

}  // namespace mm01
