// The three sub-layers of a layer. x is the normalised input [T, D], out [T, D] the sub-layer's
// output before the residual, complete on every rank.
#pragma once

#include "model/text01/step.h"

namespace mm01 {

// out = W_out (sigmoid(W_gate x) * norm(lightning attention(SiLU(W_qkv x))))
void LightningBlock(const TextModel& model, const Step& step, int64_t layer, const Tensor& x,
                    const Tensor& out);

// out = W_o softmax attention(RoPE(W_q x), RoPE(W_k x), W_v x)
void SoftmaxBlock(const TextModel& model, const Step& step, int64_t layer, const Tensor& x,
                  const Tensor& out);

// Router, experts and their sum, or the dense FFN where the model has no experts.
void MlpBlock(const TextModel& model, int64_t layer, const Tensor& x, const Tensor& out);

}  // namespace mm01
