// adamw.h on a GPU. Moments and values stay on it; sums of squares are read back, which waits for
// the queue.
#pragma once

#include <span>

#include "kernels/optim/adamw.h"

namespace mm01::cuda {

void AdamW(Queue& queue, const AdamWArgs& args);
void AdamWMany(Queue& queue, std::span<const AdamWArgs> tensors);
double SumOfSquaresOf(Queue& queue, const Tensor& x);
double SumOfSquaresOfMany(Queue& queue, std::span<const Tensor> tensors);

}  // namespace mm01::cuda
