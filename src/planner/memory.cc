#include "planner/memory.h"

#include <fmt/core.h>

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/format.h"
#include "model/text01/state.h"  // kLightningBlock, kKvPage

namespace mm01 {
namespace {

// Holds any product of a valid configuration's sizes with a context and a number of sequences.
using Wide = __int128;

constexpr int64_t kFloatBytes = 4;
constexpr int64_t kCudaWorkspace = 256 << 20;  // of libraries and of kernels

int64_t RoundUp(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// Bytes of the model's matrices in one weight type.
class WeightSizes {
 public:
  WeightSizes(const TextConfig& config, const WeightType& type) : c_(config), type_(type) {}

  int64_t Matrix(int64_t out, int64_t in) const {
    return WeightBytes(type_, RoundUp(out, kPanel), in);
  }
  int64_t Head() const { return Matrix(c_.vocab_size, c_.hidden_size); }
  int64_t EmbeddingRow() const { return WeightBytes(type_, 1, c_.hidden_size); }

  // All layers, each with `num_experts` of its experts.
  int64_t Layers(int64_t num_experts) const {
    const int64_t d = c_.hidden_size;
    int64_t rest = 2 * d * kFloatBytes;
    if (c_.num_experts > 0) {
      rest += num_experts * SwiGlu(c_.ffn_size) + RoundUp(c_.num_experts, kPanel) * d * kFloatBytes;
    } else {
      rest += SwiGlu(c_.ffn_size);
    }
    if (c_.shared_ffn_size > 0) rest += SwiGlu(c_.shared_ffn_size) + kPanel * d * kFloatBytes;
    return c_.num_lightning_layers() * (Lightning() + rest) +
           c_.num_softmax_layers() * (Softmax() + rest) + d * kFloatBytes;
  }

 private:
  int64_t SwiGlu(int64_t ffn) const {
    return 2 * Matrix(ffn, c_.hidden_size) + Matrix(c_.hidden_size, ffn);
  }
  int64_t Lightning() const {
    const int64_t width = c_.num_heads * c_.head_dim;
    return Matrix(3 * width, c_.hidden_size) + Matrix(width, c_.hidden_size) +
           Matrix(c_.hidden_size, width) + width * kFloatBytes;
  }
  int64_t Softmax() const {
    const int64_t width = c_.num_heads * c_.head_dim;
    return Matrix(width, c_.hidden_size) + Matrix(c_.hidden_size, width) +
           2 * Matrix(c_.num_kv_heads * c_.head_dim, c_.hidden_size);
  }

  const TextConfig& c_;
  WeightType type_;
};

// Bytes of an element of the rows between ops, and of k and v in a state slot.
int64_t RowBytes(Device device, const WeightType& weights) {
  const bool exact = device == Device::kCpu || weights.dtype == DType::kF32;
  return SizeOf(exact ? DType::kF32 : DType::kBF16);
}

// One sequence's lightning state in all layers, with k and v of `rows` tokens since the border.
int64_t StateBytes(const TextConfig& c, int64_t rows, int64_t row_bytes) {
  return c.num_lightning_layers() * c.num_heads * c.head_dim *
         (c.head_dim * kFloatBytes + 2 * rows * row_bytes);
}

int64_t KvBytesPerToken(const TextConfig& c, DType kv) {
  Check(kv == DType::kF32 || kv == DType::kBF16, "KV is float32 or bf16");
  return c.num_softmax_layers() * 2 * c.num_kv_heads * c.head_dim * SizeOf(kv);
}

// Float32 activations of one token: four rows of the residual stream (itself, its norm, a
// sub-layer's output, their sum), and the larger of what attention and FFN hold between their
// projections.
int64_t ActivationsPerToken(const TextConfig& c) {
  const int64_t d = c.hidden_size;
  const int64_t width = c.num_heads * c.head_dim;
  const int64_t lightning = c.num_lightning_layers() > 0 ? 5 * width : 0;  // q, k, v, gate, output
  const int64_t softmax =
      c.num_softmax_layers() > 0 ? 2 * (width + c.num_kv_heads * c.head_dim) : 0;
  const int64_t chosen = std::max<int64_t>(1, c.num_experts_per_token);
  int64_t ffn = chosen * (2 * d + 2 * c.ffn_size) + c.num_experts;
  if (c.shared_ffn_size > 0) ffn += d + 2 * c.shared_ffn_size;
  return 4 * d + std::max({lightning, softmax, ffn});
}

Status CheckCount(const char* name, int64_t value) {
  if (value >= 1) return Status::Ok();
  return Status::Invalid(fmt::format("{} is {}, wanted 1 or more", name, value));
}

}  // namespace

DType DefaultKvType(const WeightType& weights) {
  return weights.dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
}

std::string MemoryPlan::ToTable() const {
  std::string table;
  const auto line = [&](const char* name, int64_t bytes) {
    table += fmt::format("{:<12}{:>12}\n", name, FormatBytes(static_cast<double>(bytes)));
  };
  line("weights", weights);
  line("state", state);
  line("KV cache", kv);
  line("workspace", workspace);
  line("total", total());
  return table;
}

Result<MemoryPlan> PlanMemory(const TextConfig& c, const MemoryOptions& o) {
  MM01_RETURN_IF_ERROR(CheckCount("the context in tokens", o.context_tokens));
  MM01_RETURN_IF_ERROR(CheckCount("the number of sequences", o.num_sequences));
  MM01_RETURN_IF_ERROR(CheckCount("the chunk in tokens", o.chunk_rows));
  const WeightSizes sizes(c, o.weights);
  const Wide pages = (Wide{o.context_tokens} + kKvPage - 1) / kKvPage;
  const Wide rows = std::max(o.chunk_rows, o.num_sequences);

  const Wide weights =
      Wide{sizes.Layers(c.num_experts)} + sizes.Head() * (c.tied_embeddings ? 1 : 2);
  const int64_t row_bytes = RowBytes(o.device, o.weights);
  const Wide state = Wide{StateBytes(c, kLightningBlock, row_bytes)} * o.num_sequences;
  const Wide sequence_kv = pages * kKvPage * KvBytesPerToken(c, o.kv);
  const Wide workspace = rows * ActivationsPerToken(c) * row_bytes +
                         Wide{c.vocab_size} * o.num_sequences * kFloatBytes +
                         (o.device == Device::kCuda ? kCudaWorkspace : 0);

  constexpr Wide kMax = std::numeric_limits<int64_t>::max();
  const bool kv_fits = sequence_kv <= kMax / o.num_sequences;
  const Wide kv = kv_fits ? sequence_kv * o.num_sequences : kMax;
  if (!kv_fits || weights + state + kv + workspace > kMax) {
    return Status::TooLarge(fmt::format(
        "{} sequences of {} tokens with chunks of {} need more than {}, wanted less",
        o.num_sequences, o.context_tokens, o.chunk_rows, FormatBytes(static_cast<double>(kMax))));
  }
  return MemoryPlan{.weights = static_cast<int64_t>(weights),
                    .state = static_cast<int64_t>(state),
                    .kv = static_cast<int64_t>(kv),
                    .workspace = static_cast<int64_t>(workspace)};
}

Status CheckFits(const MemoryPlan& plan, int64_t available_bytes) {
  if (plan.total() <= available_bytes) return Status::Ok();
  const auto text = [](int64_t bytes) { return FormatBytes(static_cast<double>(bytes)); };
  return Status::TooLarge(fmt::format(
      "{} are needed (weights {}, state {}, KV cache {}, workspace {}) and {} are available",
      text(plan.total()), text(plan.weights), text(plan.state), text(plan.kv), text(plan.workspace),
      text(available_bytes)));
}

BytesTouched BytesTouchedPerToken(const TextConfig& c, const WeightType& weights, DType kv,
                                  int64_t context) {
  Check(context >= 1, "a token is part of its own context");
  const WeightSizes sizes(c, weights);
  const int64_t row_bytes = RowBytes(Device::kCpu, weights);
  return {.weights = sizes.Layers(c.num_experts_per_token) + sizes.EmbeddingRow() + sizes.Head(),
          .state = StateBytes(c, (context - 1) % kLightningBlock + 1, row_bytes),
          .kv = KvBytesPerToken(c, kv) * context};
}

}  // namespace mm01
