// The smallest model that a trainer can train: logits are a row of a table, the last token's, plus
// a bias. For tests of everything around the model.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "device/buffer.h"
#include "model/text01/trainer_model.h"

namespace mm01 {

class BigramTrainer final : public TrainerModel {
 public:
  // `on_pass` may spoil the gradients of a pass, counted from 0.
  using OnPass = std::function<void(int64_t pass, BigramTrainer& model)>;

  explicit BigramTrainer(TextConfig config, OnPass on_pass = {})
      : config_(std::move(config)), on_pass_(std::move(on_pass)) {
    const int64_t v = config_.vocab_size;
    memory_ = Buffer(2 * 4 * (v * v + v));
    float* at = memory_.As<float>();
    const auto take = [&](int64_t n) { return std::exchange(at, at + n); };
    parameters_.push_back(
        {"model.embed_tokens.weight", Tensor(take(v * v), {v, v}), Tensor(take(v * v), {v, v})});
    parameters_.push_back({"model.norm.weight", Tensor(take(v), {v}), Tensor(take(v), {v})});
  }

  const TextConfig& config() const override { return config_; }
  std::span<const TrainParameter> parameters() const override { return parameters_; }
  std::vector<TrainMemoryLine> memory() const override { return {{"table", memory_.bytes()}}; }

  void Initialise(uint64_t seed) override {
    for (size_t p = 0; p < parameters_.size(); ++p) {
      float* values = Floats(parameters_[p].value);
      for (int64_t i = 0; i < parameters_[p].value.size(); ++i) {
        values[i] = static_cast<float>(0.1 * RandomNormal(seed, p, static_cast<uint64_t>(i)));
      }
    }
  }
  Status Load(const Checkpoint& checkpoint) override {
    for (const TrainParameter& p : parameters_) {
      MM01_ASSIGN_OR_RETURN(const auto values, checkpoint.ReadAll<float>(checkpoint.Find(p.name)));
      std::copy(values.begin(), values.end(), Floats(p.value));
    }
    return Status::Ok();
  }
  void ParametersChanged() override { ++num_changes_; }
  int64_t num_changes() const { return num_changes_; }

  void ZeroGradients() override {
    for (const TrainParameter& p : parameters_) {
      std::fill_n(Floats(p.gradient), p.gradient.size(), 0.0f);
    }
  }
  TrainLosses ForwardBackward(const TrainBatch& batch, double scale, double) override {
    const TrainLosses losses = Pass(batch, scale);
    if (on_pass_) on_pass_(passes_, *this);
    ++passes_;
    return losses;
  }
  TrainLosses Evaluate(const TrainBatch& batch) override { return Pass(batch, 0); }

  static float* Floats(const Tensor& t) { return static_cast<float*>(t.data); }

 private:
  TrainLosses Pass(const TrainBatch& batch, double scale) {
    const int64_t v = config_.vocab_size;
    TrainLosses losses;
    losses.expert_rows.assign(config_.layers.size(),
                              std::vector<int64_t>(static_cast<size_t>(config_.num_experts),
                                                   static_cast<int64_t>(batch.ids.size())));
    std::vector<double> p(static_cast<size_t>(v));
    for (size_t t = 0; t < batch.ids.size(); ++t) {
      const int32_t target = batch.targets[t];
      if (target < 0) continue;
      const float* row = Floats(parameters_[0].value) + batch.ids[t] * v;
      const float* bias = Floats(parameters_[1].value);
      double sum = 0;
      for (int64_t i = 0; i < v; ++i) sum += p[static_cast<size_t>(i)] = std::exp(row[i] + bias[i]);
      losses.cross_entropy -= std::log(p[static_cast<size_t>(target)] / sum);
      ++losses.counted;
      float* row_gradient = Floats(parameters_[0].gradient) + batch.ids[t] * v;
      float* bias_gradient = Floats(parameters_[1].gradient);
      for (int64_t i = 0; i < v && scale != 0; ++i) {
        const double g = scale * (p[static_cast<size_t>(i)] / sum - (i == target ? 1 : 0));
        row_gradient[i] += static_cast<float>(g);
        bias_gradient[i] += static_cast<float>(g);
      }
    }
    return losses;
  }

  TextConfig config_;
  OnPass on_pass_;
  Buffer memory_;
  std::vector<TrainParameter> parameters_;
  int64_t passes_ = 0;
  int64_t num_changes_ = 0;
};

}  // namespace mm01
