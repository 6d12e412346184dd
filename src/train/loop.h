// A run from its first step to its last: steps, logs, validation, samples and checkpoints, each on
// its schedule, in a folder.
//
//   RUN/recipe.toml     the recipe as it was given
//   RUN/metrics.jsonl   one line a step, validation, sample or note
//   RUN/events.out.*    the same for TensorBoard
//   RUN/checkpoints/    see checkpoint.h
//   RUN/model/          the weights as they were last exported; `mm01 generate` reads them
//
// Errors    Those of the trainer and of the logs. A checkpoint that cannot be written is noted, and
//           training goes on.
#pragma once

#include <functional>
#include <string>

#include "base/status.h"
#include "comm/group.h"
#include "train/metrics.h"
#include "train/recipe.h"
#include "train/trainer.h"

namespace mm01::train {

// What the loop asks of whoever started it; only the first rank's are called.
struct LoopHooks {
  // False stops the run, which is then saved.
  std::function<bool(const StepMetrics& metrics)> on_step;
  std::function<void(const std::string& note)> on_note;
  // Reads the model at `folder`, writes on from the recipe's prompt, looks for its needles.
  std::function<Result<SampleReport>(const std::string& folder)> sample;
  std::function<int64_t()> memory_bytes;
  std::function<double()> unix_seconds;
};

struct LoopOptions {
  std::string run;       // folder; it exists
  bool overfit = false;  // then nothing is saved
};

enum class LoopEnd { kDone, kStopped };

Result<LoopEnd> RunLoop(const Recipe& recipe, Trainer& trainer, Group& group,
                        const LoopOptions& options, const LoopHooks& hooks);

// Of one training token, forward and backward, at rows of this length.
double TrainFlopsPerToken(const TextConfig& config, int64_t length);

}  // namespace mm01::train
