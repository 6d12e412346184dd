#include "model/text01/training_parameters.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string_view>
#include <unordered_map>

#include "base/check.h"
#include "base/rng.h"
#include "kernels/convert/convert.h"
#include "kernels/lightning/lightning.h"
#include "model/text01/tensor_names.h"
#include "model/text01/weights.h"

namespace mm01 {
namespace {

constexpr int64_t kAlignFloats = 64;

int64_t NumFloats(const WantedTensor& wanted) {
  int64_t n = 1;
  for (const int64_t dim : wanted.shape) n *= dim;
  return n;
}

// Where each tensor begins in the memory, in elements, and the size of all. Matrices that multiply
// the same rows lie one above the other, so that one product does for them: an expert's w3 comes
// right behind its w1, k and v behind q, and the gate behind qkv, which is their order anyway.
struct Places {
  std::vector<int64_t> first;
  int64_t floats = 0;

  explicit Places(const std::vector<WantedTensor>& wanted) : first(wanted.size()) {
    const auto ends = [&](size_t i, std::string_view name) {
      return i < wanted.size() && wanted[i].name.ends_with(name);
    };
    std::vector<bool> placed(wanted.size());
    const auto place = [&](size_t i) {
      first[i] = floats;
      floats += NumFloats(wanted[i]);
      placed[i] = true;
    };
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (placed[i]) continue;
      const bool behind = ends(i, "self_attn.output_gate.weight") ||
                          ends(i, "self_attn.k_proj.weight") || ends(i, "self_attn.v_proj.weight");
      if (!behind) floats = (floats + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
      place(i);
      if (ends(i, ".w1.weight") && ends(i + 2, ".w3.weight")) place(i + 2);
      if (ends(i, "mlp.gate_proj.weight") && ends(i + 1, "mlp.up_proj.weight")) place(i + 1);
    }
    floats = (floats + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
  }
};

// Matrices of as many columns, each beginning where the one above it ends.
TrainTensor Stack(std::initializer_list<TrainTensor> matrices) {
  const auto stack = [&](Tensor TrainTensor::*which) {
    Tensor all = matrices.begin()->*which;
    all.shape[0] = 0;
    for (const TrainTensor& t : matrices) {
      const Tensor& m = t.*which;
      const auto* const end = static_cast<std::byte*>(all.data) + all.size() * SizeOf(all.dtype);
      Check(m.data == end && m.dim(1) == all.dim(1), "stacked matrices do not lie side by side");
      all.shape[0] += m.dim(0);
    }
    return all;
  };
  return {.value = stack(&TrainTensor::value),
          .gradient = stack(&TrainTensor::gradient),
          .weight = stack(&TrainTensor::weight)};
}

// The tensor that begins `floats` elements into the memory.
Tensor At(const Buffer& memory, DType type, int64_t floats, const WantedTensor& wanted) {
  std::byte* const at = memory.data() + floats * SizeOf(type);
  return wanted.shape.size() == 1 ? Tensor(type, at, {wanted.shape[0]})
                                  : Tensor(type, at, {wanted.shape[0], wanted.shape[1]});
}

// The structure of the model, filled from tensors by name.
class ParametersBuilder {
 public:
  ParametersBuilder(const TextConfig& config, TrainParameters& p, std::vector<TrainTensor> tensors)
      : c_(config), p_(p) {
    for (size_t i = 0; i < tensors.size(); ++i) by_name_[p.all[i].name] = tensors[i];
  }

  void Build() {
    p_.embedding = by_name_.at(kEmbeddingName);
    p_.final_norm = by_name_.at(kFinalNormName);
    p_.head = c_.tied_embeddings ? p_.embedding : by_name_.at(kLmHeadName);
    for (int64_t i = 0; i < c_.num_layers(); ++i) p_.layers.push_back(Layer(i));
  }

 private:
  TrainLayer Layer(int64_t i) const {
    const auto get = [&](const char* what) { return by_name_.at(LayerTensorName(i, what)); };
    TrainLayer l{.kind = c_.layers[static_cast<size_t>(i)]};
    l.input_norm = get("input_layernorm");
    l.mlp_norm = get("post_attention_layernorm");
    if (l.kind == LayerKind::kLightning) {
      l.qkv = get("self_attn.qkv_proj");
      l.gate = get("self_attn.output_gate");
      l.inputs = Stack({l.qkv, l.gate});
      l.norm = get("self_attn.norm");
      l.out = get("self_attn.out_proj");
    } else {
      l.q = get("self_attn.q_proj");
      l.k = get("self_attn.k_proj");
      l.v = get("self_attn.v_proj");
      l.inputs = Stack({l.q, l.k, l.v});
      l.out = get("self_attn.o_proj");
    }
    if (c_.num_experts == 0) {
      l.experts.push_back(Expert(get("mlp.gate_proj"), get("mlp.down_proj"), get("mlp.up_proj")));
      return l;
    }
    l.router = get("block_sparse_moe.gate");
    for (int64_t e = 0; e < c_.num_experts; ++e) {
      const auto matrix = [&](const char* w) { return by_name_.at(ExpertTensorName(i, e, w)); };
      l.experts.push_back(Expert(matrix("w1"), matrix("w2"), matrix("w3")));
    }
    return l;
  }

  static TrainExpert Expert(const TrainTensor& w1, const TrainTensor& w2, const TrainTensor& w3) {
    return {.w1 = w1, .w2 = w2, .w3 = w3, .w13 = Stack({w1, w3})};
  }

  const TextConfig& c_;
  TrainParameters& p_;
  std::unordered_map<std::string, TrainTensor> by_name_;
};

// Normal numbers of deviation `deviation`, in rows begin .. end-1 of every `period` rows.
struct RandomRows {
  int64_t period, begin, end;
  double deviation;
};

void FillRandom(Queue& queue, const View<float, 2>& m, uint64_t seed, uint64_t stream,
                const RandomRows& rows) {
  queue.pool().ParallelFor(m.dim(0), [&](int64_t r, int) {
    if (r % rows.period < rows.begin || r % rows.period >= rows.end) return;
    for (int64_t i = 0; i < m.dim(1); ++i) {
      const auto n = static_cast<uint64_t>(r * m.dim(1) + i);
      m(r, i) = static_cast<float>(rows.deviation * RandomNormal(seed, stream, n));
    }
  });
}

double Xavier(int64_t in, int64_t out) {
  return std::sqrt(2.0 / static_cast<double>(in + out));
}

// fill(view) sets all elements of a matrix in the CPU's memory, which then go to the queue's
// device.
template <typename F>
void Put(Queue& queue, const Tensor& to, F&& fill) {
  std::vector<float> values(static_cast<size_t>(to.size()));
  fill(Tensor(values.data(), {to.dim(0), to.dim(1)}).As<float, 2>());
  queue.CopyToDevice(to.data, values.data(), to.size() * SizeOf(DType::kF32));
}

void CopyRows(Queue& queue, const Weight& from, const TrainTensor& to) {
  Put(queue, to.value, [&](const View<float, 2>& value) {
    queue.pool().ParallelFor(from.n(), [&](int64_t r, int) {
      from.GetRow(r, {&value(r, 0), static_cast<size_t>(from.k())});
    });
  });
}

void CopyVector(Queue& queue, const Parameters& from, const TrainTensor& to) {
  Check(std::ssize(from.values()) == to.value.size(),
        "a vector of the checkpoint has another size");
  queue.CopyToDevice(to.value.data, from.values().data(), to.value.size() * SizeOf(DType::kF32));
}

void PlaceSlopes(Queue& queue, const TextConfig& c, TrainParameters& p) {
  const SlopeRule rule =
      c.kind == ConfigKind::kOriginal ? SlopeRule::kOriginal : SlopeRule::kTransformers;
  std::vector<float> slopes;
  for (int64_t i = 0; i < c.num_layers(); ++i) {
    if (c.layers[static_cast<size_t>(i)] != LayerKind::kLightning) continue;
    const std::vector<float> slope = LightningSlopes(rule, c.num_heads, i, c.num_layers());
    slopes.insert(slopes.end(), slope.begin(), slope.end());
  }
  if (slopes.empty()) return;
  p.slopes = Buffer(std::ssize(slopes) * SizeOf(DType::kF32), queue.device());
  queue.CopyToDevice(p.slopes.data(), slopes.data(), p.slopes.bytes());
  float* at = p.slopes.As<float>();
  for (TrainLayer& layer : p.layers) {
    if (layer.kind != LayerKind::kLightning) continue;
    layer.slope = Tensor(at, {c.num_heads});
    at += c.num_heads;
  }
}

}  // namespace

TrainParameters::TrainParameters(Queue& queue, const TextConfig& config, DType products) {
  const std::vector<WantedTensor> wanted = WantedTensors(config);
  const Places places(wanted);
  values = Buffer(places.floats * SizeOf(DType::kF32), queue.device());
  gradients = Buffer(values.bytes(), queue.device());
  const bool copied = products != DType::kF32;
  if (copied) copies = Buffer(places.floats * SizeOf(products), queue.device());
  std::vector<TrainTensor> tensors;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const WantedTensor& w = wanted[i];
    const int64_t at = places.first[i];
    const Tensor value = At(values, DType::kF32, at, w);
    const Tensor gradient = At(gradients, DType::kF32, at, w);
    all.push_back({w.name, value, gradient});
    tensors.push_back({value, gradient, copied ? At(copies, products, at, w) : value});
  }
  ParametersBuilder(config, *this, tensors).Build();
  PlaceSlopes(queue, config, *this);
}

void TrainParameters::Changed(Queue& queue) {
  const int64_t n = num_floats();
  if (copies.bytes() == 0) return;
  Convert(queue, Tensor(values.As<float>(), {n}), Tensor(copies.As<bf16>(), {n}));
}

void TrainParameters::Initialise(Queue& queue, const TextConfig& c, uint64_t seed) {
  const double gain = std::pow(8.0 * static_cast<double>(c.num_layers()), -0.25);
  for (size_t i = 0; i < all.size(); ++i) {
    const TrainParameter& p = all[i];
    const auto is = [&](const char* what) { return p.name.find(what) != std::string::npos; };
    if (p.value.rank == 1) {
      const std::vector<float> ones(static_cast<size_t>(p.value.size()), 1.0f);
      queue.CopyToDevice(p.value.data, ones.data(), p.value.size() * SizeOf(DType::kF32));
      continue;
    }
    const int64_t out = p.value.dim(0), in = p.value.dim(1);
    if (is("qkv_proj")) {
      // The rows of a head are q, k and v, of which v has the gain.
      const int64_t d = c.head_dim;
      const double deviation = Xavier(in, out / 3);
      Put(queue, p.value, [&](const View<float, 2>& value) {
        FillRandom(queue, value, seed, i, {3 * d, 0, 2 * d, deviation});
        FillRandom(queue, value, seed, i, {3 * d, 2 * d, 3 * d, deviation * gain});
      });
      continue;
    }
    const bool has_gain = is("v_proj") || is("out_proj") || is("o_proj") || is(".experts.") ||
                          is("mlp.gate_proj") || is("mlp.up_proj") || is("mlp.down_proj");
    Put(queue, p.value, [&](const View<float, 2>& value) {
      FillRandom(queue, value, seed, i, {1, 0, 1, Xavier(in, out) * (has_gain ? gain : 1.0)});
    });
  }
}

Status TrainParameters::Load(Queue& queue, const TextConfig& config, const Checkpoint& checkpoint) {
  Queue cpu(queue.num_threads());
  MM01_ASSIGN_OR_RETURN(const TextWeights w, LoadWeights(cpu, checkpoint, config, {DType::kF32, 0},
                                                         Shard::Whole(config)));
  CopyRows(queue, w.embedding, embedding);
  if (!config.tied_embeddings) CopyRows(queue, w.lm_head, head);
  CopyVector(queue, w.final_norm, final_norm);
  for (size_t i = 0; i < layers.size(); ++i) {
    const TextLayer& from = w.layers[i];
    TrainLayer& to = layers[i];
    CopyVector(queue, from.input_norm, to.input_norm);
    CopyVector(queue, from.mlp_norm, to.mlp_norm);
    if (to.kind == LayerKind::kLightning) {
      CopyRows(queue, from.lightning.qkv, to.qkv);
      CopyRows(queue, from.lightning.gate, to.gate);
      CopyRows(queue, from.lightning.out, to.out);
      CopyVector(queue, from.lightning.norm, to.norm);
    } else {
      CopyRows(queue, from.softmax.q, to.q);
      CopyRows(queue, from.softmax.k, to.k);
      CopyRows(queue, from.softmax.v, to.v);
      CopyRows(queue, from.softmax.out, to.out);
    }
    if (config.num_experts > 0) CopyRows(queue, from.mlp.router, to.router);
    for (size_t e = 0; e < to.experts.size(); ++e) {
      CopyRows(queue, from.mlp.experts[e].w1, to.experts[e].w1);
      CopyRows(queue, from.mlp.experts[e].w2, to.experts[e].w2);
      CopyRows(queue, from.mlp.experts[e].w3, to.experts[e].w3);
    }
  }
  return Status::Ok();
}

}  // namespace mm01
