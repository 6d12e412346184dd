// A text model in training: parameters with their gradients, and a pass forward and back.
//
// Letters   T rows of all documents end to end, N documents, V vocabulary, E experts, L layers.
// Types     Master parameters and gradients are float32. On the CPU everything else is too; on a
//           GPU products are of bf16 with float32 sums (or float32 where asked).
// Packing   Documents lie end to end without padding; state and causal mask begin anew at each.
// Order     Every sum has one order, so a pass gives the same bits each time, on any number of
//           threads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/queue.h"
#include "io/checkpoint.h"
#include "kernels/moe/moe_backward.h"
#include "model/text01/config.h"
#include "tensor/tensor.h"

namespace mm01 {

// One tensor as the checkpoint has it, in the published names and shapes; an expert's matrix is a
// tensor of its own.
struct TrainParameter {
  std::string name;
  Tensor value;     // [n, k] or [n], float32, on the device of the queue
  Tensor gradient;  // the same shape: the sum since ZeroGradients
};

struct TrainBatch {
  std::vector<int32_t> ids;         // [T]
  std::vector<int32_t> targets;     // [T]  the token that should come next; -1: not counted
  std::vector<int64_t> cu_seqlens;  // [N + 1]
};

// What a pass keeps for its way back besides what costs matrix products to have again. Each choice
// keeps what those before it do; memory is counted in numbers of a token and layer.
enum class Keep {
  kProducts,  // nothing more: the rest is worked out again
  // What goes into each sub-layer: 2 D. In bf16 what is worked out again is the norm of a rounded
  // sum, so gradients differ from those of kProducts by roundings.
  kNorms,
  // What lightning attention and the product behind it read, 4 H K, the rows of experts and what
  // their last product reads, k (D + F).
  // The same bits as kNorms.
  kAll,
};

struct TrainOptions {
  AuxiliaryForm auxiliary_form = AuxiliaryForm::kTransformers;
  double auxiliary_coefficient = 0.001;
  double capacity_factor = 0;  // 0: dropless; else an expert takes ceil(T k / E factor) rows
  int64_t max_tokens = 0;      // most rows of one pass: what memory is planned for
  int64_t vocab_used = 0;      // rows of the head that are tokens; 0: all of them
  bool exact = false;          // on a GPU: float32 products
  Keep keep = Keep::kProducts;
};

struct TrainLosses {
  double cross_entropy = 0;  // sum over the counted targets, nats
  int64_t counted = 0;
  double auxiliary = 0;                           // without its coefficient
  std::vector<std::vector<int64_t>> expert_rows;  // [L][E] rows routed to each expert
  int64_t dropped_rows = 0;
};

// What a pass keeps and what it computes again, with the bytes of each; printed before training.
struct TrainMemoryLine {
  std::string what;
  int64_t bytes = 0;
  bool recomputed = false;
};

class TrainerModel {
 public:
  // Memory for parameters, gradients and one pass of max_tokens. Errors: a configuration with what
  // is not built for training.
  static Result<std::unique_ptr<TrainerModel>> Create(Queue& queue, const TextConfig& config,
                                                      const TrainOptions& options);
  virtual ~TrainerModel() = default;

  virtual const TextConfig& config() const = 0;
  virtual std::span<const TrainParameter> parameters() const = 0;  // the order never changes
  virtual std::vector<TrainMemoryLine> memory() const = 0;

  // Xavier, with the DeepNorm gain (8 L)^-1/4 on value and output projections and experts; norms
  // are 1. A function of the seed and the configuration alone.
  virtual void Initialise(uint64_t seed) = 0;
  virtual Status Load(const Checkpoint& checkpoint) = 0;

  // To be called whenever somebody has written parameter values.
  virtual void ParametersChanged() = 0;

  virtual void ZeroGradients() = 0;
  // Adds to the gradients those of  scale * cross_entropy  +  auxiliary_scale * coefficient *
  // auxiliary. For the mean over a step's C counted tokens in M passes: 1 / C and 1 / M.
  virtual TrainLosses ForwardBackward(const TrainBatch& batch, double scale,
                                      double auxiliary_scale) = 0;
  virtual TrainLosses Evaluate(const TrainBatch& batch) = 0;  // no gradients
};

}  // namespace mm01
