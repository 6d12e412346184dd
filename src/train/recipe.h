// What a training run is: the model's shape, its data, its stages and its schedule, from one TOML
// file. docs/training.md lists the fields.
//
// Paths in a recipe are relative to the folder the program runs in.
// Errors    Invalid, one sentence with file, line, field, the value found and the value wanted; a
//           field that is not known is an error too. NotFound and Io of the file.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/text01/config.h"
#include "model/text01/trainer_model.h"

namespace mm01::train {

struct IntRange {
  int64_t min = 1;
  int64_t max = 1;
};

// Documents: a data set of `mm01 data build`, or a text file as that reads it, which is then
// encoded in memory. Documents outside the limits are left out, and of each only a part is taken.
// Without resets a row is a window of all documents end to end, from any token on, and is read as
// one text; there are no limits then.
struct SourceSpec {
  std::string name;
  std::string path;
  bool resets = true;
  double part_begin = 0;  // shares of a document's tokens
  double part_end = 1;
  int64_t min_tokens = 1;
  int64_t max_tokens = std::numeric_limits<int64_t>::max();
};

enum class TaskKind {
  kNeedle,     // sentences with magic numbers in a text; asked for some of them
  kRecall,     // a list of keys with values; asked for some of them
  kVariables,  // chains of assignments in a text; asked who holds a value
};

// What the loss of a synthetic sample counts.
enum class TaskLoss {
  kAnswers,  // the answers' tokens
  kText,     // those and the text between; facts and questions, which nobody could know, are not
  kAll,
};

// Samples made on the fly. See data/tasks.h.
struct TaskSpec {
  std::string name;
  TaskKind kind = TaskKind::kNeedle;
  std::string haystack;  // the source whose text lies between; none for kRecall
  IntRange length;       // tokens of a sample
  IntRange keys;         // needles, or chains
  IntRange questions;    // of a sample; at most its keys
  TaskLoss loss = TaskLoss::kAnswers;
  bool ask_anywhere = false;  // questions stand anywhere behind what they ask for, not at the end
};

// The share of a source or a task among the tokens of a stage, linear from its begin to its end.
struct Share {
  std::string name;
  double begin = 0;
  double end = 0;
};

// From this step of the stage on, tokens of one step.
struct BatchChange {
  int64_t step = 0;
  int64_t tokens = 0;
};

struct StageSpec {
  int64_t steps = 0;
  int64_t length = 0;              // tokens of a row
  std::vector<BatchChange> batch;  // the first at step 0; multiples of length
  double rope_theta = 0;           // 0: as in the stage before
  std::vector<Share> mix;

  int64_t BatchTokens(int64_t step_of_stage) const;
};

enum class Decay { kLinear, kCosine, kExponential };

struct ScheduleSpec {
  double learning_rate = 1e-3;  // the peak
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;  // the last steps of the run
  double final_share = 0;   // of the peak, at the end of the decay
  Decay decay = Decay::kLinear;
};

struct OptimizerSpec {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  // of matrices; norms have none
  double clip = 1.0;          // the largest gradient norm; 0: none
};

struct GuardSpec {
  double sigmas = 6;
  int64_t window = 128;
  int64_t max_skipped = 8;  // in a row
};

struct ValidationSpec {
  std::string source;  // empty: none
  int64_t every = 0;
  int64_t tokens = 0;
  std::vector<int64_t> lengths;  // of the windows; empty: the stage's
};

struct SamplingSpec {
  int64_t every = 0;  // 0: none
  std::string prompt;
  int64_t tokens = 64;
  std::vector<int64_t> needle_lengths;
  int64_t needle_trials = 10;
};

struct CheckpointSpec {
  int64_t every = 0;  // 0: only at the end and when stopped
  int64_t keep_last = 2;
  int64_t keep_every = 0;  // steps that are multiples are kept for good
};

struct Recipe {
  std::string path;
  std::string text;  // of the file
  std::string name;
  uint64_t seed = 0;
  std::string tokenizer;  // folder with tokenizer.json
  std::string words;      // JSON array of words for the keys of tasks
  std::string from;       // folder of a model to start with; empty: random weights
  TextConfig config;      // of `from` where there is one
  bool export_float32 = false;
  TrainOptions model;      // max_tokens: rows of one pass
  double peak_tflops = 0;  // of the device, for MFU; 0: not known
  OptimizerSpec optimizer;
  ScheduleSpec schedule;
  GuardSpec guard;
  std::vector<SourceSpec> sources;
  std::vector<TaskSpec> tasks;
  std::vector<StageSpec> stages;
  ValidationSpec validation;
  SamplingSpec sampling;
  CheckpointSpec checkpoint;

  int64_t total_steps() const;
  int64_t total_tokens() const;

  // Where a step of the run lies.
  struct Place {
    int64_t stage = 0;
    int64_t step_of_stage = 0;
  };
  Place At(int64_t step) const;
};

// `where` names the text in errors.
Result<Recipe> ParseRecipe(std::string_view toml, const std::string& where);
Result<Recipe> LoadRecipe(const std::string& path);

// What the learning rate is in step 0 .. total_steps - 1: linear from 0 over the warm-up, constant,
// and down to final_share over the last decay_steps.
double LearningRate(const ScheduleSpec& schedule, int64_t step, int64_t total_steps);

}  // namespace mm01::train
