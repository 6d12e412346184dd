// A model loaded for use: weights, memory for its sequences, tokenizer and chat template.
//
// Loading plans first: sizes come from config.json and the index, and what does not fit the machine
// is refused with the numbers before a weight is read.
//
// One thread at a time may use an engine and its sessions.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "device/queue.h"
#include "infer/machine.h"
#include "io/chat_template.h"
#include "io/tokenizer.h"
#include "model/text01/forward.h"
#include "planner/memory.h"

namespace mm01::infer {

struct EngineOptions {
  std::optional<WeightType> weights;  // as stored in the checkpoint where not given
  std::optional<DType> kv;            // float32 beside float32 weights, else bf16
  Device device = Device::kCpu;
  int num_threads = 0;            // 0: one for each core this process may use
  int64_t context_tokens = 4096;  // of one sequence
  int64_t num_sequences = 1;
  // Rows of a prefill step. Not given: 512, and on a GPU 16,384, which its experts want many of, or
  // what of the context and the memory there is.
  std::optional<int64_t> prefill_rows;
  int64_t memory_limit_bytes = 0;                  // 0: what the device has available
  std::function<void(const MemoryPlan&)> on_plan;  // before anything is loaded
  LoadProgress on_load;
};

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> Load(const std::string& model_dir, EngineOptions options);
  // A model of random weights and no tokenizer, for measuring speed. A device that is not there is
  // our own bug.
  static std::unique_ptr<Engine> Random(const TextConfig& config, WeightType type,
                                        EngineOptions options);

  const TextConfig& config() const { return weights_.config; }
  const TextWeights& weights() const { return weights_; }
  const EngineOptions& options() const { return options_; }
  const MemoryPlan& plan() const { return plan_; }
  const Tokenizer* tokenizer() const { return tokenizer_ ? &*tokenizer_ : nullptr; }
  // Empty where the model brought none, and so was never trained on one.
  const ChatTemplate* chat_template() const { return template_ ? &*template_ : nullptr; }
  bool IsEnd(int32_t token) const;  // ends a text: one of the configuration's end-of-sequence ids

  TextModel model(TapSink* taps = nullptr) {
    return {
        .queue = queue_, .weights = weights_, .state = *state_, .taps = taps, .graphs = &graphs_};
  }
  TextState& state() { return *state_; }
  Queue& queue() { return queue_; }

  // A number that differs between models whose states are not interchangeable: a hash of the
  // configuration, the tensors' names and sizes, a sample of every tensor's bytes, and the types of
  // weights and cache.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  explicit Engine(EngineOptions options);
  Status MakePlan(const TextConfig& config, WeightType type);
  void MakeState();

  EngineOptions options_;
  Queue queue_;
  GraphCache graphs_;
  TextWeights weights_;
  std::unique_ptr<TextState> state_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> template_;
  MemoryPlan plan_;
  uint64_t fingerprint_ = 0;
};

}  // namespace mm01::infer
