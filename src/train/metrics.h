// What a run says of its steps: one line for people, one JSON object for programs, scalars for
// TensorBoard. docs/formats.md lists the fields of metrics.jsonl.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"
#include "train/append_file.h"
#include "train/tensorboard.h"
#include "train/trainer.h"

namespace mm01::train {

inline constexpr int64_t kMaxLogBytes = int64_t{4} << 30;  // of metrics.jsonl, as read again

struct StepMetrics {
  StepReport report;
  int64_t total_steps = 0;
  int64_t tokens = 0;  // of the run so far
  double tokens_per_second = 0;
  double mfu = 0;  // model flops over the device's peak; 0: not known
  int64_t memory_bytes = 0;
  double seconds_left = 0;
};

// "   12/200  loss 5.1234 (z -0.3)  norm 1.02 (z +0.1)  lr 1.0e-03  1234 tokens/s ..."
std::string ToLine(const StepMetrics& m);
Json ToJson(const StepMetrics& m, bool with_experts);
std::vector<std::pair<std::string, double>> ToScalars(const StepMetrics& m);
// The least and the most loaded expert of all layers, over an even share: 1 and 1 at best.
std::pair<double, double> ExpertBalance(const StepReport& report);

// The text that a model wrote, and what it found.
struct SampleReport {
  std::string text;
  std::vector<std::pair<int64_t, double>> needles;  // length, accuracy
};

// RUN/metrics.jsonl and RUN/events.out.tfevents.*.
class RunLog {
 public:
  // Lines of steps from `first_step` on are taken away: the run takes these steps anew.
  static Result<RunLog> Open(const std::string& run, int64_t first_step, double time);

  Status Step(const StepMetrics& m, double time, bool with_experts);
  Status Validation(int64_t step, const std::vector<ValidationScore>& scores, double time);
  Status Sample(int64_t step, const SampleReport& sample, double time);
  Status Note(int64_t step, const std::string& text);

 private:
  RunLog(AppendFile lines, EventWriter events)
      : lines_(std::move(lines)), events_(std::move(events)) {}
  Status Line(const Json& json);

  AppendFile lines_;
  EventWriter events_;
};

}  // namespace mm01::train
