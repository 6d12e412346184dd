#include "model/text01/training_plan.h"

#include <algorithm>

#include "kernels/loss/cross_entropy.h"

namespace mm01 {
namespace {

constexpr int64_t kFloatBytes = 4;

// Hands out pieces of one memory, or only counts where there is none yet.
class Pieces {
 public:
  explicit Pieces(float* memory) : memory_(memory) {}

  Tensor Take(const char* what, int64_t rows, int64_t width) {
    constexpr int64_t kAlignFloats = 64;
    const int64_t floats = (rows * width + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
    const auto line = std::ranges::find(lines_, what, &TrainMemoryLine::what);
    if (line == lines_.end()) {
      lines_.push_back({what, floats * kFloatBytes, false});
    } else {
      line->bytes += floats * kFloatBytes;
    }
    Tensor t(memory_ ? memory_ + used_ : nullptr, {rows, width});
    used_ += floats;
    return t;
  }

  int64_t used() const { return used_; }
  const std::vector<TrainMemoryLine>& lines() const { return lines_; }

 private:
  float* memory_;
  int64_t used_ = 0;
  std::vector<TrainMemoryLine> lines_;
};

KeptLayer TakeLayer(Pieces& pieces, const TextConfig& c, LayerKind kind, int64_t tokens) {
  const int64_t width = c.num_heads * c.head_dim, kv_width = c.num_kv_heads * c.head_dim;
  KeptLayer l;
  l.before_attention = pieces.Take("residual before each norm", tokens, c.hidden_size);
  l.before_mlp = pieces.Take("residual before each norm", tokens, c.hidden_size);
  constexpr const char* kInputs = "inputs of attention (q, k, v, gates)";
  constexpr const char* kOutputs = "outputs of attention";
  if (kind == LayerKind::kLightning) {
    l.qkv = pieces.Take(kInputs, tokens, 3 * width);
    l.gate = pieces.Take(kInputs, tokens, width);
  } else {
    l.q = pieces.Take(kInputs, tokens, width);
    l.k = pieces.Take(kInputs, tokens, kv_width);
    l.v = pieces.Take(kInputs, tokens, kv_width);
    l.lse = pieces.Take(kOutputs, tokens, c.num_heads);
  }
  l.attended = pieces.Take(kOutputs, tokens, width);
  const int64_t rows = tokens * std::max<int64_t>(1, c.num_experts_per_token);
  if (c.num_experts > 0) l.logits = pieces.Take("router logits", tokens, c.num_experts);
  l.expert_gate = pieces.Take("first products of the experts", rows, c.ffn_size);
  l.expert_up = pieces.Take("first products of the experts", rows, c.ffn_size);
  return l;
}

void TakeAll(Pieces& pieces, const TextConfig& config, int64_t tokens, KeptMemory& kept) {
  kept.layers.clear();
  for (const LayerKind kind : config.layers) {
    kept.layers.push_back(TakeLayer(pieces, config, kind, tokens));
  }
  kept.last = pieces.Take("residual before each norm", tokens, config.hidden_size);
}

}  // namespace

KeptLayer KeptLayer::Rows(int64_t rows) const {
  KeptLayer l;
  const auto first = [&](const Tensor& t) { return t.empty() ? t : t.Rows(0, rows); };
  l.before_attention = first(before_attention);
  l.before_mlp = first(before_mlp);
  l.qkv = first(qkv);
  l.gate = first(gate);
  l.q = first(q);
  l.k = first(k);
  l.v = first(v);
  l.lse = first(lse);
  l.attended = first(attended);
  l.logits = first(logits);
  l.expert_gate = expert_gate;  // of as many rows as are routed
  l.expert_up = expert_up;
  return l;
}

KeptMemory::KeptMemory(Queue& queue, const TextConfig& config, int64_t max_tokens) {
  Pieces count(nullptr);
  TakeAll(count, config, max_tokens, *this);
  memory = Buffer(count.used() * kFloatBytes, queue.device());
  Pieces pieces(memory.As<float>());
  TakeAll(pieces, config, max_tokens, *this);
  lines = pieces.lines();
}

int64_t WorkingBytes(const TextConfig& c, int64_t max_tokens) {
  const int64_t t = max_tokens, d = c.hidden_size, f = c.ffn_size;
  const int64_t width = c.num_heads * c.head_dim, kv_width = c.num_kv_heads * c.head_dim;
  const int64_t experts = std::max<int64_t>(1, c.num_experts);
  const int64_t rows = t * std::max<int64_t>(1, c.num_experts_per_token);
  const int64_t chunk = std::min(t, kLossRows);
  // A product packs both of its sides, in strips and panels of at most 16.
  const auto packed = [](int64_t m, int64_t n, int64_t k) { return (m + n + 32) * k; };

  const int64_t shared = t * (4 * d + c.rotary_dim + 2);
  const int64_t lightning = 9 * t * width + packed(3 * width, d, t) + packed(width, d, t) +
                            packed(t, d, 4 * width) + (t / 64 + 1) * width;
  const int64_t softmax = t * (2 * width + 2 * kv_width) +
                          std::max((2 * t + 64) * 2 * (width + kv_width) + 2 * t * c.num_heads,
                                   packed(width, d, t) + 2 * packed(kv_width, d, t) +
                                       packed(t, d, width + 2 * kv_width));
  const int64_t mlp = rows * (3 * d + 3 * f + 1) + t * c.num_experts + packed(d, f, rows) +
                      2 * packed(f, d, rows) + rows * f + 2 * experts * (d + 32) * (f + 32);
  const int64_t loss = t * d + chunk * c.vocab_size +
                       std::max({packed(chunk, c.vocab_size, d), packed(chunk, d, c.vocab_size),
                                 packed(c.vocab_size, d, chunk)});
  constexpr int64_t kSlackBytes = 1 << 20;  // small things, and rooms of threads
  return (shared + std::max({lightning, softmax, mlp, loss})) * kFloatBytes + kSlackBytes;
}

std::vector<TrainMemoryLine> MemoryPlan(const TextConfig& c, int64_t max_tokens,
                                        int64_t parameter_bytes, const KeptMemory& kept) {
  const int64_t t = max_tokens * kFloatBytes, d = c.hidden_size, width = c.num_heads * c.head_dim;
  const int64_t routed = t * std::max<int64_t>(1, c.num_experts_per_token);
  std::vector<TrainMemoryLine> lines = {{"parameters", parameter_bytes, false},
                                        {"gradients", parameter_bytes, false}};
  lines.insert(lines.end(), kept.lines.begin(), kept.lines.end());
  lines.push_back({"room that ops work in", WorkingBytes(c, max_tokens), false});

  lines.push_back({"norms", t * d * (2 * c.num_layers() + 1), true});
  if (c.num_lightning_layers() > 0) {
    lines.push_back({"SiLU and gated norms of lightning layers",
                     t * 4 * width * c.num_lightning_layers(), true});
  }
  lines.push_back({"SwiGLU and the rows of experts",
                   c.num_layers() * routed * (c.ffn_size + (c.num_experts > 0 ? d : 0)), true});
  lines.push_back({"logits", t * c.vocab_size, true});
  return lines;
}

}  // namespace mm01
