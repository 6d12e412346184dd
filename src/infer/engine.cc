#include "infer/engine.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "base/json.h"

namespace mm01::infer {
namespace {

// All that decides the bits of a state: what the model is and how its numbers are kept.
Result<uint64_t> Fingerprint(const Checkpoint& checkpoint, const TextConfig& config,
                             WeightType type, DType kv) {
  std::string identity =
      JsonText(ToJson(config)) + ToString(type.dtype) + std::to_string(type.group) + ToString(kv);
  constexpr int64_t kSample = 64;  // bytes from either end of a tensor
  for (const CheckpointTensor& t : checkpoint.tensors()) {
    identity += t.info->name + ToString(t.info->dtype) + std::to_string(t.info->bytes);
    std::vector<std::byte> sample(static_cast<size_t>(std::min(kSample, t.info->bytes)));
    for (const int64_t at : {int64_t{0}, t.info->bytes - static_cast<int64_t>(sample.size())}) {
      MM01_RETURN_IF_ERROR(checkpoint.Read(t, at, sample));
      identity.append(reinterpret_cast<const char*>(sample.data()), sample.size());
    }
  }
  return XXH3_64bits(identity.data(), identity.size());
}

Result<WeightType> TypeOf(const Checkpoint& checkpoint, const TextConfig& config) {
  std::vector<StoredTensor> stored;
  for (const CheckpointTensor& t : checkpoint.tensors()) {
    stored.push_back({t.info->name, t.info->dtype, t.info->shape});
  }
  MM01_ASSIGN_OR_RETURN(const TensorMap map, LocateTensors(config, stored, checkpoint.path()));
  return StoredWeightType(map);
}

// Of a prefill step.
constexpr int64_t kPrefillRows = 512, kMostPrefillRows = 16384;

int ThreadsOf(const EngineOptions& options) {
  return options.num_threads > 0 ? options.num_threads : AvailableCores();
}

}  // namespace

Engine::Engine(EngineOptions options)
    : options_(std::move(options)), queue_(ThreadsOf(options_), options_.device) {}

void Engine::MakeState() {
  state_ = std::make_unique<TextState>(
      config(), Shard::Whole(config()),
      StateSizes{.num_slots = options_.num_sequences,
                 .max_tokens = options_.context_tokens * options_.num_sequences,
                 .kv_type = *options_.kv,
                 .device = options_.device,
                 .row_type = weights_.activations()});
}

Status Engine::MakePlan(const TextConfig& config, WeightType type) {
  if (config.head_dim % kPanel != 0) {
    return Status::Unsupported(
        fmt::format("head_dim is {}; built for multiples of {}", config.head_dim, kPanel));
  }
  options_.weights = type;
  if (!options_.kv) options_.kv = DefaultKvType(type);
  const int64_t available = options_.memory_limit_bytes > 0 ? options_.memory_limit_bytes
                                                            : AvailableMemoryBytes(options_.device);
  int64_t rows = options_.prefill_rows.value_or(
      options_.device == Device::kCpu
          ? kPrefillRows
          : std::clamp(options_.context_tokens, kPrefillRows, kMostPrefillRows));
  for (;; rows = std::max(rows / 2, kPrefillRows)) {
    MM01_ASSIGN_OR_RETURN(plan_, PlanMemory(config, {.weights = type,
                                                     .kv = *options_.kv,
                                                     .context_tokens = options_.context_tokens,
                                                     .num_sequences = options_.num_sequences,
                                                     .chunk_rows = rows,
                                                     .device = options_.device}));
    const bool may_shrink = !options_.prefill_rows && rows > kPrefillRows;
    // The first steps, in which scratch memory finds its size, may take twice the workspace.
    if (!may_shrink || plan_.total() + plan_.workspace <= available) break;
  }
  options_.prefill_rows = rows;
  if (options_.on_plan) options_.on_plan(plan_);
  return CheckFits(plan_, available);
}

Result<std::unique_ptr<Engine>> Engine::Load(const std::string& model_dir, EngineOptions options) {
  MM01_ASSIGN_OR_RETURN(const TextConfig config, LoadTextConfig(model_dir));
  MM01_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(model_dir));
  MM01_ASSIGN_OR_RETURN(const WeightType stored, TypeOf(checkpoint, config));
  if (options.device == Device::kCuda) MM01_RETURN_IF_ERROR(FindCuda().status());

  std::unique_ptr<Engine> engine(new Engine(std::move(options)));
  const WeightType type = engine->options_.weights.value_or(stored);
  MM01_RETURN_IF_ERROR(engine->MakePlan(config, type));
  if (std::filesystem::exists(std::filesystem::path(model_dir) / "tokenizer.json")) {
    MM01_ASSIGN_OR_RETURN(engine->tokenizer_, Tokenizer::Load(model_dir));
    MM01_ASSIGN_OR_RETURN(engine->template_, LoadChatTemplate(model_dir));
    if (engine->tokenizer_->size() > config.vocab_size) {
      return Status::Invalid(
          fmt::format("{}: the tokenizer has ids up to {}, the model's vocabulary {}", model_dir,
                      engine->tokenizer_->size() - 1, config.vocab_size));
    }
  }
  const Shard whole = Shard::Whole(config);
  MM01_ASSIGN_OR_RETURN(engine->weights_, LoadWeights(engine->queue_, checkpoint, config, type,
                                                      whole, engine->options_.on_load));
  if (engine->tokenizer_) engine->weights_.vocab_used = engine->tokenizer_->size();
  MM01_ASSIGN_OR_RETURN(engine->fingerprint_,
                        Fingerprint(checkpoint, config, type, *engine->options_.kv));
  engine->MakeState();
  return engine;
}

std::unique_ptr<Engine> Engine::Random(const TextConfig& config, WeightType type,
                                       EngineOptions options) {
  std::unique_ptr<Engine> engine(new Engine(std::move(options)));
  const Status fits = engine->MakePlan(config, type);
  Check(fits.ok(), fits.message());
  engine->weights_ = RandomWeights(engine->queue_, config, type, 1);
  engine->MakeState();
  return engine;
}

bool Engine::IsEnd(int32_t token) const {
  return std::ranges::find(config().eos_ids, token) != config().eos_ids.end();
}

}  // namespace mm01::infer
