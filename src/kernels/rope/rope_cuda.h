// rope.h on a GPU.
#pragma once

#include "kernels/rope/rope.h"

namespace mm01::cuda {

void RopeTable(Queue& queue, const Tensor& position, double theta, const Tensor& cos,
               const Tensor& sin);
// `back` turns by the negative angles, as gradients are.
void Rope(Queue& queue, const Tensor& x, const Tensor& cos, const Tensor& sin, bool back = false);

}  // namespace mm01::cuda
