#include "train/recipe.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace mm01::train {

int64_t StageSpec::BatchTokens(int64_t step_of_stage) const {
  int64_t tokens = 0;
  for (const BatchChange& change : batch) {
    if (change.step <= step_of_stage) tokens = change.tokens;
  }
  return tokens;
}

int64_t Recipe::total_steps() const {
  int64_t steps = 0;
  for (const StageSpec& stage : stages) steps += stage.steps;
  return steps;
}

int64_t Recipe::total_tokens() const {
  int64_t tokens = 0;
  for (const StageSpec& stage : stages) {
    for (size_t i = 0; i < stage.batch.size(); ++i) {
      const int64_t end = i + 1 < stage.batch.size() ? stage.batch[i + 1].step : stage.steps;
      const int64_t steps = std::max<int64_t>(0, std::min(end, stage.steps) - stage.batch[i].step);
      tokens += steps * stage.batch[i].tokens;
    }
  }
  return tokens;
}

Recipe::Place Recipe::At(int64_t step) const {
  Check(0 <= step && step < total_steps(), "a step of the run");
  int64_t stage = 0;
  while (step >= stages[static_cast<size_t>(stage)].steps) {
    step -= stages[static_cast<size_t>(stage++)].steps;
  }
  return {.stage = stage, .step_of_stage = step};
}

double LearningRate(const ScheduleSpec& s, int64_t step, int64_t total_steps) {
  if (step < s.warmup_steps) {
    return s.learning_rate * static_cast<double>(step + 1) / static_cast<double>(s.warmup_steps);
  }
  const int64_t decay_begin = total_steps - s.decay_steps;
  if (step < decay_begin) return s.learning_rate;
  const double done =
      static_cast<double>(step + 1 - decay_begin) / static_cast<double>(s.decay_steps);
  switch (s.decay) {
    case Decay::kLinear:
      return s.learning_rate * (1 - (1 - s.final_share) * done);
    case Decay::kCosine:
      return s.learning_rate *
             (s.final_share + (1 - s.final_share) * 0.5 * (1 + std::cos(M_PI * done)));
    case Decay::kExponential:
      return s.learning_rate * std::pow(s.final_share, done);
  }
  Fail("a kind of decay");
}

}  // namespace mm01::train
