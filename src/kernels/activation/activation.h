// Pointwise functions between the matrix products.
//
// Letters   T rows, D width; rows may be strided.
// Types     Everything is float32; on a GPU x and shared, gate and up, and logit may be bf16, and
//           are worked in float32.
// Errors    Shapes that disagree are our own bug: Check throws.
#pragma once

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

// x = x * sigmoid(x), in place.  x: [T, D]
void Silu(Queue& queue, const Tensor& x);

// gate = gate * sigmoid(gate) * up, in place: SwiGLU.  gate, up: [T, D]
void SwiGlu(Queue& queue, const Tensor& gate, const Tensor& up);

// x = (1 - c) x + c shared with c = sigmoid(logit), in place: how a shared expert joins the routed
// ones.  x, shared: [T, D]; logit: [T, 1]
void BlendShared(Queue& queue, const Tensor& x, const Tensor& shared, const Tensor& logit);

}  // namespace mm01
