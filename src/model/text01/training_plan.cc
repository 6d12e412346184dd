#include "model/text01/training_plan.h"

#include <algorithm>

#include "kernels/lightning/lightning_backward.h"
#include "kernels/loss/cross_entropy.h"

namespace mm01 {
namespace {

constexpr const char* kResidual = "residual before each norm";
constexpr const char* kLightningRows = "SiLU and gated norms of lightning layers";
constexpr const char* kExpertRows = "rows of experts";
constexpr const char* kSwiGlu = "SwiGLU";

// Hands out pieces of one memory, or only counts where there is none yet.
class Pieces {
 public:
  explicit Pieces(std::byte* memory) : memory_(memory) {}

  Tensor Take(const char* what, DType type, int64_t rows, int64_t width) {
    constexpr int64_t kAlign = 256;
    const int64_t bytes = (rows * width * SizeOf(type) + kAlign - 1) / kAlign * kAlign;
    const auto line = std::ranges::find(lines_, what, &TrainMemoryLine::what);
    if (line == lines_.end()) {
      lines_.push_back({what, bytes, false});
    } else {
      line->bytes += bytes;
    }
    Tensor t(type, memory_ ? memory_ + used_ : nullptr, {rows, width});
    used_ += bytes;
    return t;
  }

  int64_t used() const { return used_; }
  const std::vector<TrainMemoryLine>& lines() const { return lines_; }

 private:
  std::byte* memory_;
  int64_t used_ = 0;  // bytes
  std::vector<TrainMemoryLine> lines_;
};

struct Sizes {
  const TextConfig& config;
  DType type;
  int64_t tokens;
  Keep keep;
  Device device;
};

// What the experts of a layer keep, or its dense FFN.
void TakeExperts(Pieces& pieces, const Sizes& sizes, KeptLayer& l) {
  const auto& [c, type, tokens, keep, device] = sizes;
  const int64_t k = c.num_experts_per_token, rows = tokens * std::max<int64_t>(1, k);
  if (c.num_experts > 0) {
    constexpr const char* kRouting = "router logits and routes";
    l.logits = pieces.Take(kRouting, DType::kF32, tokens, c.num_experts);
    l.room.expert = pieces.Take(kRouting, DType::kI32, tokens, k);
    l.room.share = pieces.Take(kRouting, DType::kF32, tokens, k);
    l.room.row = pieces.Take(kRouting, DType::kI32, tokens, k);
    l.room.token = pieces.Take(kRouting, DType::kI32, 1, rows);
    l.room.weight = pieces.Take(kRouting, DType::kF32, 1, rows);
  }
  if (c.num_experts > 0 && keep == Keep::kAll) {
    l.expert_x = pieces.Take(kExpertRows, type, rows, c.hidden_size);
  }
  constexpr const char* kProducts = "first products of the experts";
  l.expert_inputs = pieces.Take(kProducts, type, rows, 2 * c.ffn_size);
  if (keep == Keep::kAll) l.expert_hidden = pieces.Take(kSwiGlu, type, rows, c.ffn_size);
}

KeptLayer TakeLayer(Pieces& pieces, const Sizes& sizes, LayerKind kind) {
  const auto& [c, type, tokens, keep, device] = sizes;
  const int64_t width = c.num_heads * c.head_dim, kv_width = c.num_kv_heads * c.head_dim;
  KeptLayer l;
  l.before_attention = pieces.Take(kResidual, type, tokens, c.hidden_size);
  l.before_mlp = pieces.Take(kResidual, type, tokens, c.hidden_size);
  if (keep >= Keep::kNorms) {
    l.attention_x = pieces.Take("norms", type, tokens, c.hidden_size);
    l.mlp_x = pieces.Take("norms", type, tokens, c.hidden_size);
  }
  constexpr const char* kInputs = "inputs of attention (q, k, v, gates)";
  constexpr const char* kOutputs = "outputs of attention";
  if (kind == LayerKind::kLightning) {
    l.inputs = pieces.Take(kInputs, type, tokens, 4 * width);
    l.qkv = Columns(l.inputs, 0, 3 * width);
    l.gate = Columns(l.inputs, 3 * width, 4 * width);
    if (keep == Keep::kAll) {
      l.silu = pieces.Take(kLightningRows, type, tokens, 3 * width);
      l.gated = pieces.Take(kLightningRows, type, tokens, width);
      const int64_t borders = LightningBorders(device, type, tokens, c.num_heads, c.head_dim);
      if (borders > 0) {
        l.borders =
            pieces.Take("states of lightning layers", DType::kF32, borders, width * c.head_dim);
      }
    }
  } else {
    l.inputs = pieces.Take(kInputs, type, tokens, width + 2 * kv_width);
    l.q = Columns(l.inputs, 0, width);
    l.k = Columns(l.inputs, width, width + kv_width);
    l.v = Columns(l.inputs, width + kv_width, width + 2 * kv_width);
    l.lse = pieces.Take(kOutputs, DType::kF32, tokens, c.num_heads);
  }
  l.attended = pieces.Take(kOutputs, type, tokens, width);
  TakeExperts(pieces, sizes, l);
  return l;
}

void TakeAll(Pieces& pieces, const Sizes& sizes, KeptMemory& kept) {
  kept.layers.clear();
  for (const LayerKind kind : sizes.config.layers) {
    kept.layers.push_back(TakeLayer(pieces, sizes, kind));
  }
  kept.last = pieces.Take(kResidual, sizes.type, sizes.tokens, sizes.config.hidden_size);
}

}  // namespace

KeptLayer KeptLayer::Rows(int64_t rows) const {
  KeptLayer l;
  const auto first = [&](const Tensor& t) { return t.empty() ? t : t.Rows(0, rows); };
  l.before_attention = first(before_attention);
  l.before_mlp = first(before_mlp);
  l.attention_x = first(attention_x);
  l.mlp_x = first(mlp_x);
  l.inputs = first(inputs);
  l.qkv = first(qkv);
  l.gate = first(gate);
  l.silu = first(silu);
  l.gated = first(gated);
  l.q = first(q);
  l.k = first(k);
  l.v = first(v);
  l.lse = first(lse);
  l.attended = first(attended);
  l.logits = first(logits);
  if (!room.expert.empty()) {
    const int64_t routed = rows * room.expert.dim(1);
    l.room = {.expert = first(room.expert),
              .share = first(room.share),
              .row = first(room.row),
              .token = Tensor(DType::kI32, room.token.data, {routed}),
              .weight = Tensor(DType::kF32, room.weight.data, {routed})};
  }
  l.borders = borders;    // of as many rows as the call has
  l.expert_x = expert_x;  // of as many as are routed
  l.expert_inputs = expert_inputs;
  l.expert_hidden = expert_hidden;
  return l;
}

KeptMemory::KeptMemory(Queue& queue, const TextConfig& config, DType activations,
                       const TrainOptions& options)
    : type(activations) {
  const Sizes sizes{config, type, options.max_tokens, options.keep, queue.device()};
  Pieces count(nullptr);
  TakeAll(count, sizes, *this);
  memory = Buffer(count.used(), queue.device());
  Pieces pieces(memory.data());
  TakeAll(pieces, sizes, *this);
  lines = pieces.lines();
}

int64_t WorkingBytes(const TextConfig& c, DType type, Device device, int64_t max_tokens) {
  const bool gpu = device == Device::kCuda;
  const int64_t t = max_tokens, d = c.hidden_size, f = c.ffn_size;
  const int64_t width = c.num_heads * c.head_dim, kv_width = c.num_kv_heads * c.head_dim;
  const int64_t experts = std::max<int64_t>(1, c.num_experts);
  const int64_t rows = t * std::max<int64_t>(1, c.num_experts_per_token);
  const int64_t chunk =
      std::min(t, gpu ? std::max(kLossRows, kLossLogits / c.vocab_size) : kLossRows);
  // On the CPU a product packs both of its sides, in strips and panels of at most 16.
  const auto packed = [&](int64_t m, int64_t n, int64_t k) { return gpu ? 0 : (m + n + 32) * k; };

  const int64_t shared = t * (4 * d + c.rotary_dim + 2);
  const int64_t lightning =
      9 * t * width + packed(4 * width, d, t) + packed(t, d, 4 * width) + (t / 64 + 1) * width;
  const int64_t softmax =
      t * (2 * width + 2 * kv_width) +
      std::max((2 * t + 64) * 2 * (width + kv_width) + 2 * t * c.num_heads,
               packed(width + 2 * kv_width, d, t) + packed(t, d, width + 2 * kv_width));
  const int64_t mlp = rows * (3 * d + 3 * f + 2) + 3 * t * RouterWidth(c) + packed(d, f, rows) +
                      packed(2 * f, d, rows) + 2 * rows * f + 2 * experts * (d + 32) * (f + 32);
  const int64_t loss = t * d + (gpu ? 3 : 1) * chunk * c.vocab_size +
                       std::max({packed(chunk, c.vocab_size, d), packed(chunk, d, c.vocab_size),
                                 packed(c.vocab_size, d, chunk)});
  // Small things, and rooms of threads; on a GPU also those of products and pieces of documents.
  const int64_t slack_bytes = gpu ? 256 << 20 : 1 << 20;
  return (shared + std::max({lightning, softmax, mlp, loss})) * SizeOf(type) + slack_bytes;
}

std::vector<TrainMemoryLine> MemoryPlan(const TextConfig& c, const TrainOptions& options,
                                        const TrainParameters& parameters, const KeptMemory& kept) {
  const int64_t t = options.max_tokens * SizeOf(kept.type), d = c.hidden_size;
  const int64_t width = c.num_heads * c.head_dim;
  const int64_t routed = t * std::max<int64_t>(1, c.num_experts_per_token);
  std::vector<TrainMemoryLine> lines = {{"parameters", parameters.values.bytes(), false},
                                        {"gradients", parameters.gradients.bytes(), false}};
  if (parameters.copies.bytes() > 0) {
    lines.push_back({"parameters in bf16", parameters.copies.bytes(), false});
  }
  lines.insert(lines.end(), kept.lines.begin(), kept.lines.end());
  lines.push_back({"room that ops work in",
                   WorkingBytes(c, kept.type, kept.memory.device(), options.max_tokens), false});

  const bool keeps_norms = options.keep >= Keep::kNorms, keeps_all = options.keep == Keep::kAll;
  lines.push_back({"norms", t * d * (keeps_norms ? 1 : 2 * c.num_layers() + 1), true});
  if (c.num_lightning_layers() > 0 && !keeps_all) {
    lines.push_back({kLightningRows, t * 4 * width * c.num_lightning_layers(), true});
  }
  if (!keeps_all) lines.push_back({kSwiGlu, c.num_layers() * routed * c.ffn_size, true});
  if (c.num_experts > 0 && !keeps_all) {
    lines.push_back({kExpertRows, c.num_layers() * routed * d, true});
  }
  lines.push_back({"logits", t * c.vocab_size, true});
  return lines;
}

}  // namespace mm01
