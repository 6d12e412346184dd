// Training at the small model's shape: tokens a second of whole steps, forward, back and optimizer,
// over random tokens.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "device/device.h"
#include "eval/bench_gpu/harness.h"
#include "kernels/optim/adamw.h"
#include "model/text01/trainer_model.h"

namespace mm01::gpu {
namespace {

constexpr int64_t kStepTokens = 131'072;

// That of models/nano.
TextConfig NanoConfig() {
  TextConfig c;
  c.vocab_size = 8192;
  c.hidden_size = 256;
  c.num_heads = 2;
  c.num_kv_heads = 1;
  c.head_dim = 128;
  c.rotary_dim = 64;
  c.rope_theta = 1e6;
  c.ffn_size = 256;
  c.num_experts = 8;
  c.num_experts_per_token = 2;
  c.layers.assign(16, LayerKind::kLightning);
  c.layers[7] = c.layers[15] = LayerKind::kSoftmax;
  c.softmax_residual = c.lightning_residual =
      c.mlp_residual = {.alpha = 2.378414230005442, .beta = 1.0};
  return c;
}

TrainBatch RandomBatch(int64_t tokens, int64_t length, int64_t vocabulary) {
  TrainBatch batch;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto bits = RandomBits(5, 0, static_cast<uint64_t>(t));
    batch.ids.push_back(static_cast<int32_t>(bits % static_cast<uint64_t>(vocabulary)));
    if (t % length == 0) batch.cu_seqlens.push_back(t);
  }
  batch.cu_seqlens.push_back(tokens);
  batch.targets.assign(batch.ids.begin() + 1, batch.ids.end());
  batch.targets.push_back(-1);
  return batch;
}

double SecondsOf(Queue& queue, const std::function<void()>& work) {
  queue.Wait();
  const auto begin = std::chrono::steady_clock::now();
  work();
  queue.Wait();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Two layers and a few tokens, against the CPU.
void CheckAnswers(Harness& h) {
  TextConfig config = NanoConfig();
  config.layers = {LayerKind::kLightning, LayerKind::kSoftmax};
  const TrainBatch batch = RandomBatch(300, 100, config.vocab_size);
  const auto loss = [&](Queue& queue) {
    const auto model = TrainerModel::Create(queue, config, {.max_tokens = 300}).value();
    model->Initialise(1);
    return model->Evaluate(batch).cross_entropy;
  };
  Queue cpu(h.queue().num_threads());
  const double want = loss(cpu), got = loss(h.queue());
  if (!(std::abs(got - want) <= 2e-3 * want)) {
    throw DeviceError(fmt::format("a training pass has the loss {}, the CPU has {}", got, want));
  }
}

// A step as the training loop takes it, in passes of some tokens.
class Step {
 public:
  Step(Queue& queue, TrainerModel& model)
      : queue_(queue), model_(model), moments_(2 * Bytes(model), Device::kCuda) {
    float* at = moments_.As<float>();
    const auto room = [&](const Tensor& like) {
      Tensor t = like;
      t.data = at;
      at += like.size();
      return t;
    };
    for (const TrainParameter& p : model.parameters()) {
      gradients_.push_back(p.gradient);
      updates_.push_back({.value = p.value,
                          .gradient = p.gradient,
                          .m = room(p.value),
                          .v = room(p.value),
                          .learning_rate = 1e-4,
                          .step = 1});
    }
  }

  void Run(const TrainBatch& pass, int64_t passes) {
    model_.ZeroGradients();
    for (int64_t i = 0; i < passes; ++i) {
      model_.ForwardBackward(pass, 1.0 / kStepTokens, 1.0 / static_cast<double>(passes));
    }
    const double norm = std::sqrt(SumOfSquaresOfMany(queue_, gradients_));
    for (AdamWArgs& update : updates_) update.gradient_scale = std::min(1.0, 1.0 / norm);
    AdamWMany(queue_, updates_);
    model_.ParametersChanged();
  }

 private:
  static int64_t Bytes(const TrainerModel& model) {
    int64_t bytes = 0;
    for (const TrainParameter& p : model.parameters()) bytes += p.value.size() * 4;
    return bytes;
  }

  Queue& queue_;
  TrainerModel& model_;
  Buffer moments_;
  std::vector<Tensor> gradients_;
  std::vector<AdamWArgs> updates_;
};

}  // namespace

void BenchTrain(Harness& h) {
  CheckAnswers(h);
  Queue& queue = h.queue();
  const TextConfig config = NanoConfig();
  const auto model =
      TrainerModel::Create(queue, config, {.max_tokens = kStepTokens, .keep = Keep::kAll}).value();
  model->Initialise(1);
  Step step(queue, *model);
  for (const int64_t length : {2048, 32'768}) {
    double best = 0;
    for (const int64_t passes : {1, 2, 4}) {
      const int64_t tokens = kStepTokens / passes;
      const TrainBatch batch = RandomBatch(tokens, length, config.vocab_size);
      constexpr int kWarmUp = 2, kSteps = 7;
      std::vector<double> seconds;
      for (int i = 0; i < kWarmUp + kSteps; ++i) {
        const double s = SecondsOf(queue, [&] { step.Run(batch, passes); });
        if (i >= kWarmUp) seconds.push_back(s);
      }
      std::ranges::sort(seconds);
      const double median = seconds[seconds.size() / 2];
      best = std::max(best, static_cast<double>(kStepTokens) / median);
      const double forward = SecondsOf(queue, [&] { model->Evaluate(batch); });
      h.Say(fmt::format(
          "  documents of {}: {:.1f} ms a step in passes of {} tokens, of which one forward is "
          "{:.1f} ms",
          length, median * 1e3, tokens, forward * 1e3));
    }
    h.Add({.name = fmt::format("nano_train_tokens_per_s_{}", length),
           .value = best,
           .unit = "tokens/s"});
  }
}

}  // namespace mm01::gpu
