// A run on a GPU that is saved and gone on with, against one that was not interrupted.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "comm/thread_group.h"
#include "testing/cuda_test.h"
#include "testing/tiny_training.h"
#include "train/trainer.h"

namespace mm01::train {
namespace {

struct Outcome {
  std::vector<double> losses, norms;
  std::vector<std::vector<float>> values;
};

class TrainingCuda : public CudaTest {
 protected:
  // Takes steps in a trainer of its own.
  Outcome Run(int64_t steps, bool resume, bool save) {
    const Recipe recipe = tiny_.Recipe();
    const auto data = TrainData::Load(recipe).value();
    Outcome outcome;
    ThreadRanks(1).Run([&](int, Group& group) {
      const auto trainer = Trainer::Create(recipe, data,
                                           {.queue = queue(),
                                            .group = group,
                                            .make_model = TrainerModel::Create,
                                            .checkpoints = tiny_ / "checkpoints"})
                               .value();
      std::vector<std::string> notes;
      if (resume) {
        EXPECT_TRUE(trainer->Resume(&notes).value());
      }
      for (int64_t i = 0; i < steps; ++i) {
        const StepReport report = trainer->Step().value();
        outcome.losses.push_back(report.loss);
        outcome.norms.push_back(report.gradient_norm);
      }
      if (save) {
        EXPECT_TRUE(trainer->Save().ok());
      }
      for (const TrainParameter& p : trainer->model().parameters()) {
        OnHost(queue(), p.value,
               [&](std::span<float> v) { outcome.values.emplace_back(v.begin(), v.end()); });
      }
    });
    return outcome;
  }

 private:
  TinyTraining tiny_;
};

TEST_F(TrainingCuda, GoesOnToTheLastBit) {
  const Outcome straight = Run(200, false, false);
  Run(100, false, true);
  const Outcome resumed = Run(100, true, false);
  EXPECT_LT(straight.losses[199], straight.losses[0] - 1);
  EXPECT_EQ(straight.values, resumed.values);
  for (size_t i = 0; i < 100; ++i) {
    ASSERT_EQ(straight.losses[100 + i], resumed.losses[i]) << i;
    ASSERT_EQ(straight.norms[100 + i], resumed.norms[i]) << i;
  }
}

}  // namespace
}  // namespace mm01::train
