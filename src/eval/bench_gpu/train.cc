// Training at the small model's shape: tokens a second of whole passes, forward and back, over
// random tokens.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "device/device.h"
#include "eval/bench_gpu/harness.h"
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

}  // namespace

void BenchTrain(Harness& h) {
  CheckAnswers(h);
  Queue& queue = h.queue();
  const TextConfig config = NanoConfig();
  const auto model = TrainerModel::Create(queue, config, {.max_tokens = kStepTokens}).value();
  model->Initialise(1);
  for (const int64_t length : {2048, 32'768}) {
    const TrainBatch batch = RandomBatch(kStepTokens, length, config.vocab_size);
    const auto step = [&] {
      model->ParametersChanged();
      model->ZeroGradients();
      model->ForwardBackward(batch, 1.0 / kStepTokens, 1.0);
    };
    constexpr int kWarmUp = 2, kSteps = 7;
    std::vector<double> seconds;
    for (int i = 0; i < kWarmUp + kSteps; ++i) {
      const double s = SecondsOf(queue, step);
      if (i >= kWarmUp) seconds.push_back(s);
    }
    std::ranges::sort(seconds);
    const double median = seconds[seconds.size() / 2];
    h.Add({.name = fmt::format("nano_train_tokens_per_s_{}", length),
           .value = static_cast<double>(kStepTokens) / median,
           .unit = "tokens/s"});
    const double forward = SecondsOf(queue, [&] { model->Evaluate(batch); });
    h.Say(fmt::format(
        "  {:.1f} ms a step of {} tokens without the optimizer, the way forward {:.1f} ms",
        median * 1e3, kStepTokens, forward * 1e3));
  }
}

}  // namespace mm01::gpu
