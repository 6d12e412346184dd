// AdamW over all ranks: gradients are added up, each rank updates a range of all parameters and
// keeps the moments of that range alone, and hands the new values to the others.
//
// Letters   P elements of all parameters, end to end in the model's order. Rank r of n has elements
//           P r / n .. P (r + 1) / n - 1.
// Memory    8 P / n bytes of moments on the queue's device.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "comm/group.h"
#include "device/buffer.h"
#include "device/queue.h"
#include "model/text01/trainer_model.h"
#include "train/recipe.h"

namespace mm01::train {

// Elements begin .. end - 1 of one parameter.
struct ParameterRange {
  size_t parameter = 0;
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
};

// The ranges of one rank, in order; at most one of each parameter.
std::vector<ParameterRange> RangesOf(std::span<const TrainParameter> parameters, int rank,
                                     int num_ranks);

// Elements of a contiguous float32 tensor, as a vector.
Tensor Flat(const Tensor& t, int64_t begin, int64_t end);
// Calls fn with the elements of a contiguous float32 tensor in the host's memory, and puts what it
// left there back on the device.
void OnHost(Queue& queue, const Tensor& t, const std::function<void(std::span<float>)>& fn);

class Optimizer {
 public:
  // All must outlive this.
  Optimizer(Queue& queue, Group& group, const OptimizerSpec& spec, TrainerModel& model);

  // Adds the gradients of all ranks up, in order of rank.
  void ReduceGradients();
  // The 2-norm of all gradients.
  double GradientNorm();
  // One step of AdamW with gradients scaled down to the clip where `norm` is above it. All ranks
  // hold the new values when it returns.
  void Update(double learning_rate, double norm);

  int64_t updates() const { return updates_; }  // so far
  void set_updates(int64_t n) { updates_ = n; }

  // This rank's ranges, and their moments.
  struct Moments {
    ParameterRange range;
    Tensor m, v;  // [size]
  };
  const std::vector<Moments>& moments() const { return moments_; }
  int64_t bytes() const { return memory_.bytes(); }

  // The model changed its place in memory; its parameters are the same.
  void SetModel(TrainerModel& model) { model_ = &model; }

 private:
  void ShareValues();

  Queue& queue_;
  Group& group_;
  OptimizerSpec spec_;
  TrainerModel* model_;
  Buffer memory_;
  std::vector<Moments> moments_;
  int64_t updates_ = 0;
};

}  // namespace mm01::train
