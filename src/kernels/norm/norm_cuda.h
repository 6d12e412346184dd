// norm.h on a GPU.
#pragma once

#include "kernels/norm/norm.h"

namespace mm01::cuda {

void AddNorm(Queue& queue, const AddNormArgs& args);
void AddResidual(Queue& queue, const AddResidualArgs& args);
void SumOfSquares(Queue& queue, const Tensor& x, const Tensor& out);
void GatedNorm(Queue& queue, const GatedNormArgs& args);

}  // namespace mm01::cuda
