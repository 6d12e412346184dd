// Training in float32 on a GPU against what the transformers library and PyTorch's AdamW computed
// (tests/goldens).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "eval/compare_gradients.h"
#include "kernels/optim/adamw.h"
#include "testing/cuda_test.h"
#include "testing/near.h"
#include "train/optimizer.h"

namespace mm01 {
namespace {

const std::string kGoldens = std::string(MM01_SOURCE_DIR) + "/tests/goldens/";

class TrainingGoldenCuda : public CudaTest {};

TEST_F(TrainingGoldenCuda, EveryGradientOfTextTiny) {
  const std::string folder = kGoldens + "text-tiny";
  const auto report =
      eval::CompareGradients(queue(), folder, folder + "/reference.safetensors", 1e-4);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->tensors.size(), 2u + 8 * 9 + 3);
  for (const eval::Comparison& c : report->tensors) {
    EXPECT_LE(c.relative_error, 1e-4) << c.name;
  }
}

// As the golden was made: norms decay too.
class AdamWRun {
 public:
  AdamWRun(Queue& queue, TrainerModel& model) : queue_(queue), model_(model) {
    int64_t floats = 0;
    for (const TrainParameter& p : model.parameters()) floats += 2 * p.value.size();
    moments_ = Buffer(floats * SizeOf(DType::kF32), queue.device());
    float* at = moments_.As<float>();
    for (const TrainParameter& p : model.parameters()) {
      const int64_t n = p.value.size();
      gradients_.push_back(train::Flat(p.gradient, 0, n));
      updates_.push_back({.value = train::Flat(p.value, 0, n),
                          .gradient = gradients_.back(),
                          .m = Tensor(at, {n}),
                          .v = Tensor(at + n, {n}),
                          .learning_rate = 1e-3,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.1});
      at += 2 * n;
    }
  }

  // Returns the norm before clipping.
  double Step(int64_t step) {
    const double norm = std::sqrt(SumOfSquaresOfMany(queue_, gradients_));
    for (AdamWArgs& update : updates_) {
      update.step = step;
      update.gradient_scale = std::min(1.0, 1.0 / (norm + 1e-6));
    }
    AdamWMany(queue_, updates_);
    model_.ParametersChanged();
    return norm;
  }

 private:
  Queue& queue_;
  TrainerModel& model_;
  Buffer moments_;
  std::vector<Tensor> gradients_;
  std::vector<AdamWArgs> updates_;
};

template <typename T>
std::vector<T> ReadTensor(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* info = file.Find(name);
  Check(info != nullptr, name);
  return file.ReadAll<T>(*info).value();
}

TEST_F(TrainingGoldenCuda, TwentyStepsOfAdamW) {
  constexpr int64_t kRows = 2, kLength = 50;
  constexpr double kAuxiliary = 0.001, kTargets = kRows * (kLength - 1);
  const TextConfig config = LoadTextConfig(kGoldens + "text-tiny").value();
  const auto model =
      TrainerModel::Create(
          queue(), config,
          {.auxiliary_coefficient = kAuxiliary, .max_tokens = kRows * kLength, .exact = true})
          .value();
  ASSERT_TRUE(model->Load(Checkpoint::Open(kGoldens + "text-tiny").value()).ok());
  const auto golden =
      SafetensorsFile::Open(kGoldens + "text-tiny-adamw/reference.safetensors").value();
  const auto data = ReadTensor<int64_t>(golden, "data");
  const auto losses = ReadTensor<float>(golden, "losses");
  const auto norms = ReadTensor<float>(golden, "grad_norms");
  ASSERT_EQ(losses.size(), 20u);

  AdamWRun adamw(queue(), *model);
  for (size_t step = 0; step < losses.size(); ++step) {
    const auto first = data.begin() + static_cast<int64_t>(step % 4) * kRows * kLength;
    const std::vector<int32_t> ids(first, first + kRows * kLength);
    model->ZeroGradients();
    const TrainLosses l = model->ForwardBackward(eval::PackRows(ids, kRows), 1.0 / kTargets, 1.0);
    const double loss = l.cross_entropy / kTargets + kAuxiliary * l.auxiliary;
    const double norm = adamw.Step(static_cast<int64_t>(step) + 1);
    EXPECT_NEAR(loss, losses[step], 1e-4 * static_cast<double>(losses[step])) << step;
    EXPECT_NEAR(norm, norms[step], 1e-4 * static_cast<double>(norms[step])) << step;
  }
  const auto ours = eval::ByEveryName(queue(), *model, false);
  for (const TensorInfo& info : golden.tensors()) {
    if (!info.name.starts_with("final.")) continue;
    const auto want = ReadTensor<float>(golden, info.name);
    EXPECT_LE(RelativeError(ours.at(info.name.substr(6)), want), 1e-3) << info.name;
  }
}

}  // namespace
}  // namespace mm01
