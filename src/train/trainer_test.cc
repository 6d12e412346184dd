#include "train/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/sanitized.h"
#include "comm/thread_group.h"
#include "testing/bigram_trainer.h"
#include "testing/tiny_training.h"
#include "train/checkpoint.h"

namespace mm01::train {
namespace {

// What a run leaves behind.
struct Outcome {
  std::vector<double> losses, norms;
  std::vector<std::vector<float>> values;
  int64_t step = 0;
  int64_t skipped = 0;
  std::string error;
};

class Training : public testing::Test {
 protected:
  struct Options {
    int ranks = 1;
    int64_t steps = 0;
    bool resume = false;
    bool save = false;
    bool overfit = false;
    BigramTrainer::OnPass on_pass;  // of rank 0
  };

  // Takes steps in a trainer of its own.
  Outcome Run(const Options& options) { return Run(tiny_.Recipe(), options); }
  Outcome Run(const Recipe& recipe, const Options& options) {
    const auto data = TrainData::Load(recipe).value();
    Outcome outcome;
    ThreadRanks(options.ranks).Run([&](int rank, Group& group) {
      Queue queue(rank == 0 ? 2 : 1);
      const TrainerPlace place{.queue = queue,
                               .group = group,
                               .make_model =
                                   [&](Queue&, const TextConfig& config, const TrainOptions&) {
                                     const auto on_pass =
                                         rank == 0 ? options.on_pass : BigramTrainer::OnPass{};
                                     return Result<std::unique_ptr<TrainerModel>>(
                                         std::make_unique<BigramTrainer>(config, on_pass));
                                   },
                               .checkpoints = tiny_ / "checkpoints",
                               .overfit = options.overfit};
      const auto trainer = Trainer::Create(recipe, data, place).value();
      std::vector<std::string> notes;
      if (options.resume) {
        EXPECT_TRUE(trainer->Resume(&notes).value());
      }
      Outcome mine;
      for (int64_t i = 0; i < options.steps; ++i) {
        const auto report = trainer->Step();
        if (!report.ok()) {
          mine.error = report.status().message();
          break;
        }
        mine.losses.push_back(report->loss);
        mine.norms.push_back(report->gradient_norm);
        mine.skipped = report->skipped;
      }
      if (options.save) {
        EXPECT_TRUE(trainer->Save().ok());
      }
      mine.step = trainer->step();
      for (const TrainParameter& p : trainer->model().parameters()) {
        const float* values = BigramTrainer::Floats(p.value);
        mine.values.emplace_back(values, values + p.value.size());
      }
      if (rank == 0) outcome = std::move(mine);
    });
    return outcome;
  }

  TinyTraining tiny_;
};

TEST_F(Training, LossFalls) {
  const Outcome outcome = Run({.steps = 60});
  EXPECT_NEAR(outcome.losses[0], std::log(258), 0.2);
  EXPECT_LT(outcome.losses[59], outcome.losses[0] - 1);
  EXPECT_EQ(outcome.skipped, 0);
}

class TrainingByRanks : public Training, public testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(, TrainingByRanks, testing::Values(1, 4));

TEST_P(TrainingByRanks, GoesOnToTheLastBit) {
  const int ranks = GetParam();
  const int64_t half = kSanitized ? 30 : 100;
  const Outcome straight = Run({.ranks = ranks, .steps = 2 * half});
  Run({.ranks = ranks, .steps = half, .save = true});
  const Outcome resumed = Run({.ranks = ranks, .steps = half, .resume = true});
  EXPECT_EQ(straight.values, resumed.values);
  const auto before = static_cast<size_t>(half);
  for (size_t i = 0; i < before; ++i) {
    ASSERT_EQ(straight.losses[before + i], resumed.losses[i]) << i;
    ASSERT_EQ(straight.norms[before + i], resumed.norms[i]) << i;
  }
  EXPECT_EQ(resumed.step, 2 * half);
}

TEST_F(Training, SavedByFourRanksIsResumedByFewer) {
  Run({.ranks = 4, .steps = 50, .save = true});
  const Outcome four = Run({.ranks = 4, .steps = 3, .resume = true});
  for (const int ranks : {2, 1}) {
    const Outcome fewer = Run({.ranks = ranks, .steps = 3, .resume = true});
    for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(fewer.losses[i], four.losses[i], 1e-6);
  }
}

// Spoils pass 4 n .. 4 n + 3, which is step n of one rank.
BigramTrainer::OnPass SpoilStep(int64_t step, float with, int64_t passes = 4) {
  return [=](int64_t pass, BigramTrainer& model) {
    if (pass / passes == step) BigramTrainer::Floats(model.parameters()[1].gradient)[7] = with;
  };
}

TEST_F(Training, ASpoiledStepChangesNoWeight) {
  const Outcome before = Run({.steps = 10});
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    const Outcome after = Run({.steps = 11, .on_pass = SpoilStep(10, bad)});
    EXPECT_EQ(after.values, before.values);
    EXPECT_EQ(after.skipped, 1);
  }
  // On one rank of four, which has one pass a step: all of them skip.
  const Outcome four = Run({.ranks = 4, .steps = 10});
  const Outcome spoiled =
      Run({.ranks = 4,
           .steps = 11,
           .on_pass = SpoilStep(10, std::numeric_limits<float>::quiet_NaN(), 1)});
  EXPECT_EQ(spoiled.values, four.values);
  EXPECT_EQ(spoiled.skipped, 1);
}

TEST_F(Training, ASkippedStepLeavesTheOptimizerAsItWas) {
  // The save after a skipped step differs from one before it in its counters alone.
  Run({.steps = 10, .save = true});
  const auto skipped =
      Run({.steps = 1, .resume = true, .save = true, .on_pass = SpoilStep(0, NAN)});
  EXPECT_EQ(skipped.skipped, 1);
  const auto a = SavedCheckpoint::Open(tiny_ / "checkpoints", 10).value();
  const auto b = SavedCheckpoint::Open(tiny_ / "checkpoints", 11).value();
  EXPECT_EQ(a.state().at("updates"), b.state().at("updates"));
  for (const char* kind : {"value", "m", "v"}) {
    std::vector<float> x(258), y(258);
    const std::string name = std::string(kind) + "/model.norm.weight";
    ASSERT_TRUE(a.Read(name, 258, 0, x).ok() && b.Read(name, 258, 0, y).ok());
    EXPECT_EQ(x, y);
    EXPECT_NE(x, std::vector<float>(258));
  }
}

TEST_F(Training, EightSkippedStepsInARowRollBack) {
  const Outcome saved = Run({.steps = 20, .save = true});
  const Outcome lost = Run({.steps = 30, .resume = true, .on_pass = [](int64_t pass, auto& model) {
                              if (pass >= 5 * 4) {
                                BigramTrainer::Floats(model.parameters()[0].gradient)[0] = NAN;
                              }
                            }});
  EXPECT_EQ(lost.losses.size(), 5u + 7u);
  EXPECT_EQ(lost.step, 20);
  EXPECT_EQ(lost.values, saved.values);
  EXPECT_TRUE(
      lost.error.starts_with("8 steps in a row were skipped, the last of them, step 32, "
                             "because the gradient norm is nan; stopped, the model is "
                             "again that of the checkpoint of step 20"))
      << lost.error;
}

TEST_F(Training, OverfittingSeesOneBatchAgainAndAgain) {
  const Outcome outcome = Run({.steps = 100, .overfit = true});
  for (size_t i = 1; i < 100; ++i) EXPECT_LT(outcome.losses[i], outcome.losses[i - 1] + 0.01);
}

TEST_F(Training, AnotherRopeBaseKeepsTheParameters) {
  std::string text = tiny_.RecipeText();
  text.replace(text.find("steps = 200"), 11, "steps = 10");
  text.replace(text.find("decay_steps = 50"), 16, "decay_steps = 5");
  const std::string more =
      "[[stage]]\nsteps = 10\nlength = 256\nbatch_tokens = 512\nmix = { text = 1 }\n";
  const Recipe same = ParseRecipe(text + more, "same").value();
  const Recipe other = ParseRecipe(text + more + "rope_theta = 5e6\n", "other").value();
  EXPECT_EQ(Run(same, {.steps = 20}).values, Run(other, {.steps = 20}).values);
  const Outcome straight = Run(other, {.steps = 20});
  Run(other, {.steps = 15, .save = true});
  EXPECT_EQ(Run(other, {.steps = 5, .resume = true}).values, straight.values);
}

TEST_F(Training, WhatIsExportedIsAPublishedCheckpoint) {
  const Recipe recipe = tiny_.Recipe();
  const auto data = TrainData::Load(recipe).value();
  Queue queue(1);
  SingleGroup group;
  const TrainerPlace place{
      .queue = queue,
      .group = group,
      .make_model =
          [](Queue&, const TextConfig& config, const TrainOptions&) {
            return Result<std::unique_ptr<TrainerModel>>(std::make_unique<BigramTrainer>(config));
          },
      .checkpoints = tiny_ / "checkpoints"};
  const auto trainer = Trainer::Create(recipe, data, place).value();
  ASSERT_TRUE(trainer->Export(tiny_ / "model").ok());
  const Checkpoint checkpoint = Checkpoint::Open(tiny_ / "model").value();
  const auto values = checkpoint.ReadAll<bf16>(checkpoint.Find("model.norm.weight")).value();
  const float* trained = BigramTrainer::Floats(trainer->model().parameters()[1].value);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], ToBF16(trained[i]));
  EXPECT_EQ(LoadTextConfig(tiny_ / "model").value(), recipe.config);
  EXPECT_TRUE(Tokenizer::Load(tiny_ / "model").ok());
}

TEST_F(Training, ValidationIsTheSameForAnyNumberOfRanks) {
  const Recipe recipe = tiny_.Recipe();
  const auto data = TrainData::Load(recipe).value();
  double alone = 0;
  for (const int ranks : {1, 3}) {
    ThreadRanks(ranks).Run([&](int, Group& group) {
      Queue queue(1);
      const TrainerPlace place{.queue = queue,
                               .group = group,
                               .make_model =
                                   [](Queue&, const TextConfig& config, const TrainOptions&) {
                                     return Result<std::unique_ptr<TrainerModel>>(
                                         std::make_unique<BigramTrainer>(config));
                                   },
                               .checkpoints = ""};
      const auto trainer = Trainer::Create(recipe, data, place).value();
      const auto scores = trainer->Validate().value();
      ASSERT_EQ(scores.size(), 1u);
      EXPECT_EQ(scores[0].length, 256);
      if (ranks == 1) alone = scores[0].loss;
      EXPECT_NEAR(scores[0].loss, alone, 1e-12);
    });
  }
}

}  // namespace
}  // namespace mm01::train
