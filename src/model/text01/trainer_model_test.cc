// The training pass as a whole: its gradients against the loss itself, and what packing and threads
// must not change.
#include "model/text01/trainer_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "io/checkpoint.h"
#include "testing/arrays.h"
#include "testing/tiny_model.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

std::unique_ptr<TrainerModel> Make(Queue& queue, const TextConfig& config,
                                   TrainOptions options = {}) {
  options.max_tokens = 200;
  auto model = TrainerModel::Create(queue, config, options);
  Check(model.ok(), model.status().message());
  (*model)->Initialise(7);
  // Away from the special point where all norms are 1.
  uint64_t stream = 100;
  for (const TrainParameter& p : (*model)->parameters()) {
    if (p.value.rank > 1) continue;
    const Floats noise = RandomFloats(stream++, p.value.size());
    for (size_t i = 0; i < noise.size(); ++i) {
      static_cast<float*>(p.value.data)[i] += 0.1f * noise[i];
    }
  }
  (*model)->ParametersChanged();
  return std::move(*model);
}

TrainBatch Batch(const std::vector<int64_t>& lengths) {
  TrainBatch batch{.cu_seqlens = {0}};
  for (const int64_t n : lengths) {
    const auto ids = TinyTokens(n, 96, static_cast<uint64_t>(n));
    batch.ids.insert(batch.ids.end(), ids.begin(), ids.end());
    batch.targets.insert(batch.targets.end(), ids.begin() + 1, ids.end());
    batch.targets.push_back(-1);
    batch.cu_seqlens.push_back(std::ssize(batch.ids));
  }
  return batch;
}

Floats Gradients(const TrainerModel& model) {
  Floats all;
  for (const TrainParameter& p : model.parameters()) {
    const float* g = static_cast<const float*>(p.gradient.data);
    all.insert(all.end(), g, g + p.gradient.size());
  }
  return all;
}

// Along any direction d, (L(p + h d) - L(p - h d)) / 2h is the gradient's share of d. In float32,
// with d the gradient itself, that is known to three digits.
void ExpectGradientOfLoss(const TextConfig& config, const TrainOptions& options,
                          double auxiliary_scale) {
  Queue queue(2);
  const auto model = Make(queue, config, options);
  const TrainBatch batch = Batch({40, 1, 70});
  model->ZeroGradients();
  const TrainLosses first = model->ForwardBackward(batch, 0.01, auxiliary_scale);
  const TrainLosses again = model->Evaluate(batch);
  EXPECT_EQ(again.cross_entropy, first.cross_entropy);
  EXPECT_EQ(again.auxiliary, first.auxiliary);
  for (const TrainParameter& p : model->parameters()) {
    auto* value = static_cast<float*>(p.value.data);
    const auto* gradient = static_cast<const float*>(p.gradient.data);
    const Floats old(value, value + p.value.size());
    double norm = 0.0, size = 0.0;
    for (size_t i = 0; i < old.size(); ++i) {
      norm += static_cast<double>(gradient[i]) * static_cast<double>(gradient[i]);
      size += static_cast<double>(old[i]) * static_cast<double>(old[i]);
    }
    norm = std::sqrt(norm);
    ASSERT_GT(norm, 0.0) << p.name;
    const double h = 1e-3 * std::sqrt(size);
    const auto loss_at = [&](double step) {
      for (size_t i = 0; i < old.size(); ++i) {
        value[i] = static_cast<float>(static_cast<double>(old[i]) +
                                      step * static_cast<double>(gradient[i]) / norm);
      }
      const TrainLosses l = model->Evaluate(batch);
      return 0.01 * l.cross_entropy + auxiliary_scale * options.auxiliary_coefficient * l.auxiliary;
    };
    const double slope = (loss_at(h) - loss_at(-h)) / (2 * h);
    std::copy(old.begin(), old.end(), value);
    EXPECT_NEAR(slope, norm, 0.02 * norm + 1e-5) << p.name;
  }
}

// Every expert takes every token, so that no step changes who gets what.
TextConfig SmoothConfig() {
  TextConfig config = TinyConfig();
  config.num_experts_per_token = config.num_experts;
  return config;
}

TEST(TrainerModelSlow, GradientsAreTheSlopeOfTheLoss) {
  ExpectGradientOfLoss(SmoothConfig(), {.auxiliary_coefficient = 0.1}, 1.0);
}

TEST(TrainerModelSlow, GradientsUnderACapacity) {
  ExpectGradientOfLoss(SmoothConfig(),
                       {.auxiliary_form = AuxiliaryForm::kPaper, .capacity_factor = 0.6}, 0.5);
}

TEST(TrainerModelSlow, GradientsWithoutPostNormAndWithADenseFfn) {
  TextConfig config = TinyConfig();
  config.post_norm = false;
  config.num_experts = config.num_experts_per_token = 0;
  config.softmax_residual.beta = 0.7;
  config.mlp_residual.beta = 0.8;
  config.tied_embeddings = true;
  ExpectGradientOfLoss(config, {}, 0.0);
}

TEST(TrainerModelTest, WhatIsKeptChangesNoBit) {
  Queue queue(2);
  TextConfig carried = TinyConfig();
  carried.post_norm = false;
  for (const TextConfig& config : {TinyConfig(), carried}) {
    std::vector<Floats> gradients;
    for (const Keep keep : {Keep::kProducts, Keep::kNorms, Keep::kAll}) {
      const auto model = Make(queue, config, {.auxiliary_coefficient = 0.1, .keep = keep});
      model->ZeroGradients();
      model->ForwardBackward(Batch({65, 3, 90}), 0.01, 1.0);
      gradients.push_back(Gradients(*model));
    }
    EXPECT_EQ(gradients[0], gradients[1]);
    EXPECT_EQ(gradients[0], gradients[2]);
  }
}

TEST(TrainerModelTest, PackedDocumentsEqualDocumentsOneByOne) {
  Queue queue(2);
  const auto model = Make(queue, TinyConfig(), {.auxiliary_coefficient = 0.0});
  model->ZeroGradients();
  const TrainLosses packed = model->ForwardBackward(Batch({65, 3, 90}), 0.01, 0.0);
  const Floats packed_gradients = Gradients(*model);
  model->ZeroGradients();
  double sum = 0.0;
  int64_t counted = 0;
  for (const int64_t n : {65, 3, 90}) {
    const TrainLosses alone = model->ForwardBackward(Batch({n}), 0.01, 0.0);
    sum += alone.cross_entropy;
    counted += alone.counted;
  }
  EXPECT_EQ(packed.counted, counted);
  EXPECT_NEAR(packed.cross_entropy, sum, 1e-7 * sum);
  EXPECT_LE(RelativeError(packed_gradients, Gradients(*model)), 1e-5);
}

TEST(TrainerModelTest, ThreadsDoNotChangeBits) {
  const auto run = [](int threads) {
    Queue queue(threads);
    const auto model = Make(queue, TinyConfig());
    model->ZeroGradients();
    model->ForwardBackward(Batch({100, 30}), 0.01, 1.0);
    return Gradients(*model);
  };
  EXPECT_TRUE(SameBits(run(3), run(1)));
}

TEST(TrainerModelTest, CapacityDropsRowsAndCountsThem) {
  Queue queue(1);
  const auto model = Make(queue, TinyConfig(), {.capacity_factor = 0.5});
  const TrainLosses losses = model->Evaluate(Batch({100}));
  ASSERT_EQ(losses.expert_rows.size(), 4u);
  int64_t dropped = 0;
  for (const auto& layer : losses.expert_rows) {
    int64_t rows = 0;
    for (const int64_t n : layer) {
      rows += n;
      dropped += std::max<int64_t>(0, n - 25);  // ceil(100 * 2 / 4 * 0.5)
    }
    EXPECT_EQ(rows, 200);
  }
  EXPECT_EQ(losses.dropped_rows, dropped);
}

// A trainer that looks at the loss sees that something broke.
TEST(TrainerModelTest, ANanAmongTheParametersReachesTheLoss) {
  Queue queue(2);
  const TrainBatch batch = Batch({50});
  for (const char* name : {"model.embed_tokens.weight", "model.layers.2.self_attn.k_proj.weight",
                           "model.layers.1.block_sparse_moe.gate.weight"}) {
    const auto model = Make(queue, TinyConfig());
    for (const TrainParameter& p : model->parameters()) {
      if (p.name == name) std::fill_n(static_cast<float*>(p.value.data), p.value.size(), kNaN);
    }
    model->ParametersChanged();
    model->ZeroGradients();
    EXPECT_TRUE(std::isnan(model->ForwardBackward(batch, 0.01, 1.0).cross_entropy)) << name;
  }
}

TEST(TrainerModelTest, LoadsACheckpointInAnyForm) {
  Queue queue(2);
  TempFolder folder;
  WriteTinyModel(folder.path(), TinyConfig(), {.names = TinyNames::kPort});
  const auto model = Make(queue, TinyConfig());
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  ASSERT_TRUE(model->Load(*checkpoint).ok());
  const std::vector<WantedTensor> wanted = WantedTensors(TinyConfig());
  ASSERT_EQ(wanted.size(), model->parameters().size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    const TrainParameter& p = model->parameters()[i];
    EXPECT_EQ(p.name, wanted[i].name);
    const Floats got(static_cast<float*>(p.value.data),
                     static_cast<float*>(p.value.data) + p.value.size());
    EXPECT_TRUE(SameBits(got, TinyValues(wanted[i], false))) << p.name;
  }
}

TEST(TrainerModelTest, InitialisesWithTheDeepNormGain) {
  Queue queue(2);
  auto model = TrainerModel::Create(queue, TinyConfig(), {.max_tokens = 1}).value();
  model->Initialise(3);
  const auto deviation = [&](const std::string& name, int64_t begin, int64_t end) {
    for (const TrainParameter& p : model->parameters()) {
      if (p.name != name) continue;
      double sum = 0.0;
      for (int64_t r = begin; r < end; ++r) {
        for (int64_t i = 0; i < p.value.dim(1); ++i) {
          const auto x = static_cast<double>(p.value.As<float, 2>()(r, i));
          sum += x * x;
        }
      }
      return std::sqrt(sum / static_cast<double>((end - begin) * p.value.dim(1)));
    }
    ADD_FAILURE() << name;
    return 0.0;
  };
  // Four layers: the gain is 32^(-1/4) = 0.42045. Between 64 and 64, 48 and 64: sqrt(2 / sum).
  const double square = std::sqrt(2.0 / 128.0), gain = 0.42045;
  EXPECT_NEAR(deviation("model.layers.0.self_attn.qkv_proj.weight", 0, 32), square, 0.1 * square);
  EXPECT_NEAR(deviation("model.layers.0.self_attn.qkv_proj.weight", 32, 48), gain * square,
              0.1 * gain * square);
  EXPECT_NEAR(deviation("model.layers.2.self_attn.q_proj.weight", 0, 64), square, 0.1 * square);
  const double expert = gain * std::sqrt(2.0 / 112.0);
  EXPECT_NEAR(deviation(ExpertTensorName(1, 2, "w2"), 0, 64), expert, 0.1 * expert);
}

TEST(TrainerModelSlow, AFullPassStaysWithinThePlannedRoom) {
  TextConfig dense = TinyConfig();
  dense.num_experts = dense.num_experts_per_token = 0;
  TextConfig wide = SmoothConfig();
  wide.hidden_size = 256;
  wide.layers = {LayerKind::kSoftmax};
  TextConfig wordy = TinyConfig();
  wordy.vocab_size = 5000;
  wordy.layers = {LayerKind::kLightning};
  for (const TextConfig& config : {TinyConfig(), dense, wide, wordy}) {
    Queue queue(2);
    const auto model = TrainerModel::Create(queue, config, {.max_tokens = 2000}).value();
    model->Initialise(1);
    const int64_t planned = queue.scratch_bytes();
    model->ForwardBackward(Batch({900, 100, 1000}), 0.01, 1.0);
    EXPECT_EQ(queue.scratch_bytes(), planned);
  }
}

TEST(TrainerModelTest, PlansItsMemory) {
  Queue queue(1);
  std::vector<int64_t> kept, all;
  for (const Keep keep : {Keep::kProducts, Keep::kNorms, Keep::kAll}) {
    const auto model = Make(queue, TinyConfig(), {.keep = keep});
    int64_t recomputed = 0;
    kept.push_back(0);
    for (const TrainMemoryLine& line : model->memory()) {
      EXPECT_GT(line.bytes, 0) << line.what;
      (line.recomputed ? recomputed : kept.back()) += line.bytes;
    }
    EXPECT_GT(recomputed, 0);
    all.push_back(kept.back() + recomputed);
  }
  EXPECT_LT(kept[0], kept[1]);
  EXPECT_LT(kept[1], kept[2]);
  EXPECT_EQ(all, std::vector<int64_t>(3, all[0]));
  const Status none = TrainerModel::Create(queue, TinyConfig(), {}).status();
  EXPECT_EQ(none.code(), Code::kInvalid) << none.message();
  TextConfig shared = TinyConfig();
  shared.shared_ffn_size = 32;
  const Status refused = TrainerModel::Create(queue, shared, {.max_tokens = 8}).status();
  EXPECT_EQ(refused.code(), Code::kUnsupported) << refused.message();
}

}  // namespace
}  // namespace mm01
