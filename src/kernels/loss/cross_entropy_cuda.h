// cross_entropy.h on a GPU: x, weight and d_x are all bf16 or all float32, d_weight is float32.
// Logits are float32, their gradients have the type of x. The call waits for the losses.
#pragma once

#include "kernels/loss/cross_entropy.h"

namespace mm01::cuda {

CrossEntropy LinearCrossEntropy(Queue& queue, const LinearCrossEntropyArgs& args);

}  // namespace mm01::cuda
