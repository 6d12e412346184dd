// Gradients of the pointwise functions of activation.h.
//
// Letters   T rows, D width; rows may be strided.
// Types     float32; on a GPU each matrix is float32 or bf16, and worked in float32.
// Errors    Shapes that disagree are our own bug: Check throws.
#pragma once

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

struct SiluForwardArgs {
  Tensor x;    // [T, D]
  Tensor out;  // [T, D]  x sigmoid(x), with the bits of Silu
};

// SiLU that keeps its input.
void SiluOf(Queue& queue, const SiluForwardArgs& args);

struct SiluBackwardArgs {
  Tensor x;      // [T, D]  before SiLU
  Tensor d_out;  // [T, D]
  Tensor d_x;    // [T, D]  overwritten; may be d_out
};

void SiluBackward(Queue& queue, const SiluBackwardArgs& args);

struct SwiGluForwardArgs {
  Tensor gate, up;  // [T, D]
  Tensor out;       // [T, D]  overwritten: SiLU(gate) * up, with the bits of SwiGlu
};

// SwiGLU that keeps its inputs.
void SwiGluOf(Queue& queue, const SwiGluForwardArgs& args);

// Of h = SiLU(gate) * up.
struct SwiGluBackwardArgs {
  Tensor gate, up;      // [T, D]
  Tensor d_out;         // [T, D]
  Tensor d_gate, d_up;  // [T, D]  overwritten; either may be d_out
  Tensor out = {};      // [T, D]  overwritten with h; may be empty: nobody reads it
  Tensor dots = {};     // [T]     overwritten with the sum over D of d_out * h; may be empty
};

void SwiGluBackward(Queue& queue, const SwiGluBackwardArgs& args);

}  // namespace mm01
