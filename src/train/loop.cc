#include "train/loop.h"

#include <fmt/core.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "planner/flops.h"

namespace mm01::train {
namespace {

constexpr double kNewSpeedShare = 0.1;       // of the running mean of the speed
constexpr int64_t kExpertLinesOfARun = 400;  // lines with the load of every expert

bool Due(int64_t every, int64_t steps_done) {
  return every > 0 && steps_done % every == 0;
}

class Loop {
 public:
  Loop(const Recipe& recipe, Trainer& trainer, Group& group, const LoopOptions& options,
       const LoopHooks& hooks)
      : recipe_(recipe),
        trainer_(trainer),
        group_(group),
        options_(options),
        hooks_(hooks),
        is_first_(group.rank() == 0) {}

  Result<LoopEnd> Run() {
    if (is_first_) {
      MM01_ASSIGN_OR_RETURN(RunLog log, RunLog::Open(options_.run, trainer_.step(), Now()));
      log_.emplace(std::move(log));
    }
    bool stop = false;
    while (!trainer_.done() && !stop) {
      MM01_ASSIGN_OR_RETURN(const StepReport report, TakeStep());
      MM01_ASSIGN_OR_RETURN(stop, Tell(report));
      MM01_RETURN_IF_ERROR(Scheduled(trainer_.done() || stop));
    }
    return stop && !trainer_.done() ? LoopEnd::kStopped : LoopEnd::kDone;
  }

 private:
  double Now() const { return hooks_.unix_seconds ? hooks_.unix_seconds() : 0; }

  Result<StepReport> TakeStep() {
    Result<StepReport> report = trainer_.Step();
    if (report.ok() || !is_first_) return report;
    // The sentence of the end belongs into the log as well.
    MM01_RETURN_IF_ERROR(log_->Note(trainer_.step(), report.status().message()));
    return report;
  }

  // Logs a step. Whether the run is to stop, on all ranks alike.
  Result<bool> Tell(const StepReport& report) {
    double stop = 0;
    if (is_first_) {
      const StepMetrics m = Measure(report);
      const int64_t every = std::max<int64_t>(1, m.total_steps / kExpertLinesOfARun);
      MM01_RETURN_IF_ERROR(log_->Step(m, Now(), report.step % every == 0));
      if (hooks_.on_step && !hooks_.on_step(m)) stop = 1;
    }
    group_.Broadcast(std::span(&stop, 1), 0);
    return stop != 0;
  }

  StepMetrics Measure(const StepReport& report) {
    const double speed = static_cast<double>(report.tokens) / std::max(report.seconds, 1e-9);
    speed_ = speed_ == 0 ? speed : speed_ + kNewSpeedShare * (speed - speed_);
    const auto left = static_cast<double>(recipe_.total_tokens() - trainer_.tokens());
    const double peak = recipe_.peak_tflops * 1e12 * group_.size();
    return {
        .report = report,
        .total_steps = recipe_.total_steps(),
        .tokens = trainer_.tokens(),
        .tokens_per_second = speed,
        .mfu = peak > 0 ? speed * TrainFlopsPerToken(trainer_.config(), report.length) / peak : 0,
        .memory_bytes = hooks_.memory_bytes ? hooks_.memory_bytes() : 0,
        .seconds_left = left / speed_};
  }

  // What is due after the step that was taken.
  Status Scheduled(bool last) {
    const int64_t steps = trainer_.step();
    if (Due(recipe_.validation.every, steps) ||
        (last && trainer_.done() && recipe_.validation.every > 0)) {
      MM01_RETURN_IF_ERROR(Validate(steps));
    }
    if (options_.overfit) return Status::Ok();
    if (last || Due(recipe_.checkpoint.every, steps)) Save(steps);
    const bool sample = Due(recipe_.sampling.every, steps);
    if (sample || last) {
      MM01_RETURN_IF_ERROR(trainer_.Export(options_.run + "/model"));
    }
    if (sample || (last && recipe_.sampling.every > 0)) MM01_RETURN_IF_ERROR(Sample(steps));
    return Status::Ok();
  }

  Status Validate(int64_t steps) {
    MM01_ASSIGN_OR_RETURN(const auto scores, trainer_.Validate());
    if (!is_first_) return Status::Ok();
    std::string line = "validation:";
    for (const ValidationScore& s : scores) {
      line += fmt::format("  length {} loss {:.4f}", s.length, s.loss);
    }
    Note(line);
    return log_->Validation(steps - 1, scores, Now());
  }

  void Save(int64_t steps) {
    const Status status = trainer_.Save();
    if (status.ok()) return Note(fmt::format("saved the checkpoint of step {}", steps));
    Note("the checkpoint was not saved, the one before is as it was: " + status.message());
  }

  Status Sample(int64_t steps) {
    if (!is_first_ || !hooks_.sample) return Status::Ok();
    MM01_ASSIGN_OR_RETURN(const SampleReport sample, hooks_.sample(options_.run + "/model"));
    if (!sample.text.empty()) Note("sample: " + sample.text);
    for (const auto& [length, accuracy] : sample.needles) {
      Note(fmt::format("needles at {} tokens: {:.0f} % found", length, 100 * accuracy));
    }
    return log_->Sample(steps - 1, sample, Now());
  }

  void Note(const std::string& text) const {
    if (is_first_ && hooks_.on_note) hooks_.on_note(text);
  }

  const Recipe& recipe_;
  Trainer& trainer_;
  Group& group_;
  const LoopOptions& options_;
  const LoopHooks& hooks_;
  const bool is_first_;
  std::optional<RunLog> log_;
  double speed_ = 0;  // tokens a second, a running mean
};

}  // namespace

double TrainFlopsPerToken(const TextConfig& config, int64_t length) {
  // A row's tokens see half of it on average; the backward pass costs two forward ones.
  return 3 * FlopsPerToken(config, std::max<int64_t>(1, length / 2)).total();
}

Result<LoopEnd> RunLoop(const Recipe& recipe, Trainer& trainer, Group& group,
                        const LoopOptions& options, const LoopHooks& hooks) {
  return Loop(recipe, trainer, group, options, hooks).Run();
}

}  // namespace mm01::train
