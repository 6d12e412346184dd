// The gradient of Rope (rope.h): a rotation's is the rotation by the negative angle.
#pragma once

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

// Turns the gradient d_x [T, H, D] back, in place; it is float32, on a GPU also bf16. cos, sin: [T,
// R / 2] as Rope had them.
void RopeBackward(Queue& queue, const Tensor& d_x, const Tensor& cos, const Tensor& sin);

}  // namespace mm01
