// Any bytes as a recipe: an error of one sentence, or a recipe whose steps can be walked.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "train/recipe.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto recipe = mm01::train::ParseRecipe({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!recipe.ok()) return 0;
  const int64_t total = recipe->total_steps();
  mm01::Check(total > 0 && recipe->total_tokens() > 0, "a recipe has steps");
  for (const int64_t step : {int64_t{0}, total / 2, total - 1}) {
    const auto place = recipe->At(step);
    const auto& stage = recipe->stages[static_cast<size_t>(place.stage)];
    mm01::Check(stage.BatchTokens(place.step_of_stage) >= stage.length, "a step has rows");
    const double rate = mm01::train::LearningRate(recipe->schedule, step, total);
    mm01::Check(rate >= 0 && rate <= recipe->schedule.learning_rate * (1 + 1e-12), "a rate");
  }
  return 0;
}
