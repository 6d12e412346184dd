// Gradients of the norms of norm.h. With r = 1 / sqrt(mean(x^2) + eps):
//
//   y = weight x r             dx = r weight dy - x r^3 mean(weight dy x),  dweight = sum_t dy x r
//   y = norm(x) sigmoid(gate)  the same with dy sigmoid(gate), and
//                              dgate = dy norm(x) sigmoid(gate) (1 - sigmoid(gate))
//
// A residual around the norm, h = alpha y + ... (DeepNorm) or h = alpha x + ..., has a gradient dh
// that goes back with it in the same pass: dy + alpha dh takes the place of dy, or alpha dh is
// added to dx.
//
// Letters   T rows, D width; rows may be strided.
// Types     float32; on a GPU each matrix is float32 or bf16, and worked in float32: what is
// carried
//           is added before anything is rounded to bf16.
// Order     d_weight is summed over pieces of 64 rows, on a GPU of 32, then over the pieces in an
//           order that depends on T alone, to what it held.
// Errors    Shapes that disagree are our own bug: Check throws.
#pragma once

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

struct CarriedGradient {
  Tensor rows;  // [T, D]  dh; may be empty: there is no residual
  float alpha = 1.0f;
  bool of_norm = true;  // the residual carries y, else x
};

struct NormBackwardArgs {
  Tensor x;       // [T, D]  what was normalised
  Tensor weight;  // [D]
  float eps = 1e-5f;
  Tensor d_out;     // [T, D]
  Tensor d_x;       // [T, D]  overwritten; may be d_out or what is carried
  Tensor d_weight;  // [D]     added to
  CarriedGradient carried;
};

void NormBackward(Queue& queue, const NormBackwardArgs& args);

struct GatedNormBackwardArgs {
  Tensor x, gate;  // [T, D]
  Tensor weight;   // [D]
  float eps = 1e-6f;
  Tensor d_out;     // [T, D]
  Tensor d_x;       // [T, D]  overwritten; may be d_out
  Tensor d_gate;    // [T, D]  overwritten
  Tensor d_weight;  // [D]     added to
};

void GatedNormBackward(Queue& queue, const GatedNormBackwardArgs& args);

}  // namespace mm01
