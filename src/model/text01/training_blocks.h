// The sub-layers of a layer in training: each forward keeps what its backward reads, and the
// backward works out the rest again (training_plan.h). x is the normalised input [T, D], out the
// sub-layer's output before the residual; d_x is overwritten, gradients of parameters are added to.
// All lies on the device of the queue.
#pragma once

#include <vector>

#include "device/queue.h"
#include "kernels/moe/moe_backward.h"
#include "model/text01/config.h"
#include "model/text01/training_parameters.h"
#include "tensor/tensor.h"

namespace mm01 {

// What a layer keeps from the forward pass, for at most max_tokens rows: views of one buffer.
struct KeptLayer {
  Tensor before_attention, before_mlp;  // [T, D]      the residual before each norm
  Tensor qkv, gate;                     // lightning: [T, 3 H K] before SiLU, [T, H K]
  Tensor q, k, v;                       // softmax: [T, H K], [T, G K], after RoPE
  Tensor lse;                           // softmax: [T, H]
  Tensor attended;                      // [T, H K]    what attention gave
  Tensor logits;                        // [T, E]      of the router
  Tensor expert_gate, expert_up;        // [T k, F]    products of w1 and w3, by expert
  DispatchRoom room;                    // [T, k]      which row is whose
  TrainDispatch dispatch;               //             in `room`

  // The first rows of everything: [rows, *], and [rows k, *] for the experts'.
  KeptLayer Rows(int64_t rows) const;
};

// What all layers of one pass share.
struct TrainPass {
  Queue& queue;
  const TextConfig& config;
  DType type = DType::kF32;  // of activations and their gradients
  int64_t rows = 0;
  int64_t capacity = 0;  // rows that an expert takes; 0: all
  Tensor cu_seqlens;     // [N + 1]
  Tensor cos, sin;       // [T, R / 2]
};

void LightningForward(const TrainPass& pass, const TrainLayer& layer, const KeptLayer& kept,
                      const Tensor& x, const Tensor& out);
void LightningBackwardBlock(const TrainPass& pass, const TrainLayer& layer, const KeptLayer& kept,
                            const Tensor& x, const Tensor& d_out, const Tensor& d_x);

void SoftmaxForward(const TrainPass& pass, const TrainLayer& layer, const KeptLayer& kept,
                    const Tensor& x, const Tensor& out);
void SoftmaxBackwardBlock(const TrainPass& pass, const TrainLayer& layer, const KeptLayer& kept,
                          const Tensor& x, const Tensor& d_out, const Tensor& d_x);

// Experts, or the dense FFN where the model has none. Sets kept.dispatch.
void MlpForward(const TrainPass& pass, const TrainLayer& layer, KeptLayer& kept, const Tensor& x,
                const Tensor& out);
// `balance` is the weight of each expert in the auxiliary loss (Balance::Weights), times
// `balance_scale`.
struct MlpBackwardArgs {
  Tensor x, d_out, d_x;
  const std::vector<double>& balance;
  double balance_scale = 0.0;
};
void MlpBackwardBlock(const TrainPass& pass, const TrainLayer& layer, const KeptLayer& kept,
                      const MlpBackwardArgs& args);

}  // namespace mm01
