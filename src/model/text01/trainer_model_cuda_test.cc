// The training pass on a GPU against the CPU's, whose gradients are held to those of the reference.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "device/device.h"
#include "model/text01/trainer_model.h"
#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/tiny_model.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

class TrainerModelCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
    gpu_ = std::make_unique<Queue>(2, Device::kCuda);
  }
  Queue& gpu() { return *gpu_; }
  Queue& cpu() { return cpu_; }

 private:
  std::unique_ptr<Queue> gpu_;
  Queue cpu_{2};
};

Floats Read(Queue& queue, const Tensor& t) {
  Floats x(static_cast<size_t>(t.size()));
  queue.CopyToHost(x.data(), t.data, t.size() * SizeOf(DType::kF32));
  return x;
}

void Write(Queue& queue, const Floats& x, const Tensor& t) {
  queue.CopyToDevice(t.data, x.data(), t.size() * SizeOf(DType::kF32));
}

std::unique_ptr<TrainerModel> Make(Queue& queue, const TextConfig& config, TrainOptions options) {
  options.max_tokens = 400;
  auto model = TrainerModel::Create(queue, config, options);
  Check(model.ok(), model.status().message());
  (*model)->Initialise(7);
  // Away from the special point where all norms are 1.
  uint64_t stream = 100;
  for (const TrainParameter& p : (*model)->parameters()) {
    if (p.value.rank > 1) continue;
    Floats value = Read(queue, p.value);
    const Floats noise = RandomFloats(stream++, p.value.size());
    for (size_t i = 0; i < value.size(); ++i) value[i] += 0.1f * noise[i];
    Write(queue, value, p.value);
  }
  (*model)->ParametersChanged();
  return std::move(*model);
}

TrainBatch Batch(const std::vector<int64_t>& lengths) {
  TrainBatch batch{.ids = {}, .targets = {}, .cu_seqlens = {0}};
  for (const int64_t n : lengths) {
    const auto ids = TinyTokens(n, 96, static_cast<uint64_t>(n));
    batch.ids.insert(batch.ids.end(), ids.begin(), ids.end());
    batch.targets.insert(batch.targets.end(), ids.begin() + 1, ids.end());
    batch.targets.push_back(-1);
    batch.cu_seqlens.push_back(std::ssize(batch.ids));
  }
  return batch;
}

// Every expert takes every token, so that a rounding changes no token's experts.
TextConfig SmoothConfig() {
  TextConfig config = TinyConfig();
  config.num_experts_per_token = config.num_experts;
  return config;
}

struct Pass {
  TrainLosses losses, evaluated;
  std::vector<Floats> gradients;

  Pass(Queue& queue, TrainerModel& model, const TrainBatch& batch) {
    evaluated = model.Evaluate(batch);
    model.ZeroGradients();
    losses = model.ForwardBackward(batch, 0.01, 1.0);
    for (const TrainParameter& p : model.parameters()) {
      gradients.push_back(Read(queue, p.gradient));
    }
  }
};

struct Limits {
  double loss, gradient;
};

void ExpectNear(const Pass& got, const Pass& want, const TrainerModel& model,
                const Limits& limits) {
  const double loss = want.losses.cross_entropy, auxiliary = want.losses.auxiliary;
  EXPECT_NEAR(got.losses.cross_entropy, loss, limits.loss * loss);
  EXPECT_NEAR(got.losses.auxiliary, auxiliary, limits.loss * auxiliary);
  EXPECT_EQ(got.evaluated.cross_entropy, got.losses.cross_entropy);
  EXPECT_EQ(got.losses.counted, want.losses.counted);
  for (size_t i = 0; i < want.gradients.size(); ++i) {
    EXPECT_LE(RelativeError(got.gradients[i], want.gradients[i]), limits.gradient)
        << model.parameters()[i].name;
  }
}

TEST_F(TrainerModelCuda, ExactGradientsAreTheCpus) {
  TextConfig dense = TinyConfig();
  dense.num_experts = dense.num_experts_per_token = 0;
  dense.post_norm = false;
  dense.tied_embeddings = true;
  struct Case {
    TextConfig config;
    TrainOptions options;
  };
  for (const Case& c : {Case{TinyConfig(), {.auxiliary_coefficient = 0.1}},
                        Case{TinyConfig(), {.capacity_factor = 0.8}}, Case{dense, {}}}) {
    TrainOptions options = c.options;
    options.exact = true;
    const auto there = Make(cpu(), c.config, options), here = Make(gpu(), c.config, options);
    const TrainBatch batch = Batch({65, 3, 190});
    const Pass want(cpu(), *there, batch), got(gpu(), *here, batch);
    ExpectNear(got, want, *here, {.loss = 1e-5, .gradient = 1e-4});
    EXPECT_EQ(got.losses.expert_rows, want.losses.expert_rows);
    EXPECT_EQ(got.losses.dropped_rows, want.losses.dropped_rows);
  }
}

// Kept are the norms of sums before these are rounded; worked out again, those of the rounded ones.
TEST_F(TrainerModelCuda, KeptNormsGiveTheSameGradients) {
  const auto again = Make(gpu(), TinyConfig(), {}),
             kept = Make(gpu(), TinyConfig(), {.keep = Keep::kNorms});
  const TrainBatch batch = Batch({65, 3, 190});
  const Pass want(gpu(), *again, batch), got(gpu(), *kept, batch);
  ExpectNear(got, want, *kept, {.loss = 1e-6, .gradient = 0.02});
}

// All else that may be kept was rounded before it was used.
TEST_F(TrainerModelCuda, WhatIsKeptBesidesNormsChangesNoBit) {
  TextConfig wide = TinyConfig();
  wide.head_dim = 128;
  for (const TextConfig& config : {TinyConfig(), wide}) {
    const auto again = Make(gpu(), config, {.keep = Keep::kNorms}),
               kept = Make(gpu(), config, {.keep = Keep::kAll});
    const TrainBatch batch = Batch({65, 3, 190});
    const Pass want(gpu(), *again, batch), got(gpu(), *kept, batch);
    EXPECT_EQ(got.losses.cross_entropy, want.losses.cross_entropy);
    for (size_t i = 0; i < want.gradients.size(); ++i) {
      EXPECT_TRUE(SameBits(got.gradients[i], want.gradients[i])) << kept->parameters()[i].name;
    }
  }
}

TEST_F(TrainerModelCuda, Bf16GradientsAreNearTheCpus) {
  TextConfig wide = SmoothConfig();
  wide.head_dim = 128;
  for (const TextConfig& config : {SmoothConfig(), wide}) {
    const auto there = Make(cpu(), config, {}), here = Make(gpu(), config, {});
    const TrainBatch batch = Batch({65, 3, 190});
    const Pass want(cpu(), *there, batch), got(gpu(), *here, batch);
    ExpectNear(got, want, *here, {.loss = 5e-3, .gradient = 0.05});
  }
}

TEST_F(TrainerModelCuda, RunsGiveTheSameBits) {
  const auto model = Make(gpu(), TinyConfig(), {});
  const TrainBatch batch = Batch({65, 3, 190});
  const Pass first(gpu(), *model, batch), second(gpu(), *model, batch);
  EXPECT_EQ(second.losses.cross_entropy, first.losses.cross_entropy);
  EXPECT_EQ(second.losses.auxiliary, first.losses.auxiliary);
  for (size_t i = 0; i < first.gradients.size(); ++i) {
    EXPECT_TRUE(SameBits(second.gradients[i], first.gradients[i])) << model->parameters()[i].name;
  }
}

TEST_F(TrainerModelCuda, ANanAmongTheParametersReachesTheLoss) {
  const auto model = Make(gpu(), TinyConfig(), {});
  const Tensor router = [&] {
    for (const TrainParameter& p : model->parameters()) {
      if (p.name == "model.layers.1.block_sparse_moe.gate.weight") return p.value;
    }
    return Tensor();
  }();
  ASSERT_FALSE(router.empty());
  Write(gpu(), Floats(static_cast<size_t>(router.size()), kNaN), router);
  model->ParametersChanged();
  model->ZeroGradients();
  EXPECT_TRUE(std::isnan(model->ForwardBackward(Batch({50}), 0.01, 1.0).cross_entropy));
}

}  // namespace
}  // namespace mm01
