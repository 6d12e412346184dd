// The sub-layers of a layer in training: each forward keeps what its backward reads, and the
// backward works out the rest again (training_plan.h). x is the normalised input [T, D], out the
// sub-layer's output before the residual; d_x is overwritten, gradients of parameters are added to.
// All lies on the device of the queue.
#pragma once

#include <vector>

#include "base/check.h"
#include "device/queue.h"
#include "kernels/moe/moe_backward.h"
#include "kernels/norm/norm.h"
#include "model/text01/config.h"
#include "model/text01/training_parameters.h"
#include "tensor/tensor.h"

namespace mm01 {

// What a layer keeps from the forward pass, for at most max_tokens rows: views of one buffer.
struct KeptLayer {
  Tensor before_attention, before_mlp;  // [T, D]      the residual before each norm
  Tensor attention_x, mlp_x;            // [T, D]      the norms, or empty: worked out again
  Tensor inputs;                        // what `inputs` of the layer gives; these are its columns:
  Tensor qkv, gate;                     // lightning: [T, 3 H K] before SiLU, [T, H K]
  Tensor silu;                          //            [T, 3 H K] SiLU(qkv), or empty
  Tensor gated;                         //            [T, H K]   the gated norm, or empty
  Tensor borders;                       //            states between segments, or empty
  Tensor q, k, v;                       // softmax: [T, H K], [T, G K], after RoPE
  Tensor lse;                           // softmax: [T, H]
  Tensor attended;                      // [T, H K]    what attention gave
  Tensor logits;                        // [T, E]      of the router
  Tensor expert_x;                      // [T k, D]    mlp_x by expert, or empty
  Tensor expert_inputs;                 // [T k, 2 F]  products of w13, by expert
  Tensor expert_hidden;                 // [T k, F]    SwiGLU of these, or empty
  DispatchRoom room;                    // [T, k]      which row is whose
  TrainDispatch dispatch;               //             in `room`

  // The first rows of everything: [rows, *], and [rows k, *] for the experts'.
  KeptLayer Rows(int64_t rows) const;
};

// Columns begin .. end-1 of a matrix.
inline Tensor Columns(const Tensor& m, int64_t begin, int64_t end) {
  Check(m.rank == 2 && 0 <= begin && begin <= end && end <= m.dim(1), "columns out of range");
  Tensor t = m;
  if (!m.empty()) t.data = static_cast<std::byte*>(m.data) + begin * SizeOf(m.dtype);
  t.shape[1] = end - begin;
  return t;
}

// Columns of the router's gradients in memory: the library's products want rows of 16 bytes and
// more.
inline int64_t RouterWidth(const TextConfig& config) {
  return (config.num_experts + 7) / 8 * 8;
}

// The heads of rows [T, H K] side by side: [T, H, K].
inline Tensor ByHead(const Tensor& rows, int64_t head_dim) {
  Tensor t(rows.dtype, rows.data, {rows.dim(0), rows.dim(1) / head_dim, head_dim});
  t.stride[0] = rows.stride[0];
  return t;
}

// Room for [rows, width]: `kept`'s first rows, or scratch memory where nothing is kept.
inline Tensor RoomFor(Scratch& scratch, DType type, const Tensor& kept, int64_t rows,
                      int64_t width) {
  return kept.empty() ? scratch.GetRows(type, rows, width) : kept.Rows(0, rows);
}

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

// Of the product that gave kept.inputs, for both kinds.
void InputsBackward(const TrainPass& pass, const TrainLayer& layer, const Tensor& x,
                    const Tensor& d_inputs, const Tensor& d_x);

// Experts, or the dense FFN where the model has none. Sets kept.dispatch.
void MlpForward(const TrainPass& pass, const TrainLayer& layer, KeptLayer& kept, const Tensor& x,
                const Tensor& out);
// The same, its output the branch of `norm`, whose `branch` is room for it.
void MlpForwardAddNorm(const TrainPass& pass, const TrainLayer& layer, KeptLayer& kept,
                       const Tensor& x, const AddNormArgs& norm);
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
