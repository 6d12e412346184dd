#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/optim/adamw.h"

namespace mm01::train {

std::vector<ParameterRange> RangesOf(std::span<const TrainParameter> parameters, int rank,
                                     int num_ranks) {
  int64_t total = 0;
  for (const TrainParameter& p : parameters) total += p.value.size();
  const int64_t first = total * rank / num_ranks, last = total * (rank + 1) / num_ranks;
  std::vector<ParameterRange> ranges;
  int64_t at = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const int64_t size = parameters[i].value.size();
    const int64_t begin = std::clamp<int64_t>(first - at, 0, size);
    const int64_t end = std::clamp<int64_t>(last - at, 0, size);
    if (begin < end) ranges.push_back({i, begin, end});
    at += size;
  }
  return ranges;
}

Tensor Flat(const Tensor& t, int64_t begin, int64_t end) {
  Check(t.dtype == DType::kF32 && 0 <= begin && begin <= end && end <= t.size(),
        "a range of a float32 tensor");
  return Tensor(static_cast<float*>(t.data) + begin, {end - begin});
}

void OnHost(Queue& queue, const Tensor& t, const std::function<void(std::span<float>)>& fn) {
  const auto n = static_cast<size_t>(t.size());
  if (queue.device() == Device::kCpu) return fn({static_cast<float*>(t.data), n});
  std::vector<float> host(n);
  const auto bytes = static_cast<int64_t>(n * sizeof(float));
  queue.CopyToHost(host.data(), t.data, bytes);
  fn(host);
  queue.CopyToDevice(t.data, host.data(), bytes);
}

Optimizer::Optimizer(Queue& queue, Group& group, const OptimizerSpec& spec, TrainerModel& model)
    : queue_(queue), group_(group), spec_(spec), model_(&model) {
  const auto ranges = RangesOf(model.parameters(), group.rank(), group.size());
  int64_t elements = 0;
  for (const ParameterRange& r : ranges) elements += r.size();
  memory_ = Buffer(std::max<int64_t>(1, 2 * elements) * 4, queue.device());
  float* next = memory_.As<float>();
  for (const ParameterRange& r : ranges) {
    moments_.push_back({r, Tensor(next, {r.size()}), Tensor(next + r.size(), {r.size()})});
    next += 2 * r.size();
  }
}

void Optimizer::ReduceGradients() {
  if (group_.size() == 1) return;
  for (const TrainParameter& p : model_->parameters()) {
    OnHost(queue_, p.gradient, [&](std::span<float> g) { group_.AllReduceSum(g); });
  }
}

double Optimizer::GradientNorm() {
  std::vector<Tensor> gradients;
  for (const TrainParameter& p : model_->parameters()) gradients.push_back(p.gradient);
  return std::sqrt(SumOfSquaresOfMany(queue_, gradients));
}

void Optimizer::Update(double learning_rate, double norm) {
  ++updates_;
  const bool clips = spec_.clip > 0 && norm > spec_.clip;
  std::vector<AdamWArgs> updates;
  for (const Moments& moments : moments_) {
    const ParameterRange& r = moments.range;
    const TrainParameter& p = model_->parameters()[r.parameter];
    updates.push_back({.value = Flat(p.value, r.begin, r.end),
                       .gradient = Flat(p.gradient, r.begin, r.end),
                       .m = moments.m,
                       .v = moments.v,
                       .learning_rate = learning_rate,
                       .beta1 = spec_.beta1,
                       .beta2 = spec_.beta2,
                       .eps = spec_.eps,
                       .weight_decay = p.value.rank >= 2 ? spec_.weight_decay : 0,
                       .step = updates_,
                       .gradient_scale = clips ? spec_.clip / norm : 1});
  }
  AdamWMany(queue_, updates);
  ShareValues();
  model_->ParametersChanged();
}

void Optimizer::ShareValues() {
  if (group_.size() == 1) return;
  const auto parameters = model_->parameters();
  for (int rank = 0; rank < group_.size(); ++rank) {
    for (const ParameterRange& r : RangesOf(parameters, rank, group_.size())) {
      OnHost(queue_, Flat(parameters[r.parameter].value, r.begin, r.end),
             [&](std::span<float> values) { group_.Broadcast(values, rank); });
    }
  }
}

}  // namespace mm01::train
