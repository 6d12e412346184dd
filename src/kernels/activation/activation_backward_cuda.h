// activation_backward.h on a GPU: each matrix is float32 or bf16, weights are float32.
#pragma once

#include "kernels/activation/activation_backward.h"

namespace mm01::cuda {

void SiluOf(Queue& queue, const SiluForwardArgs& args);
void SiluBackward(Queue& queue, const SiluBackwardArgs& args);
void SwiGluOf(Queue& queue, const SwiGluForwardArgs& args);
void SwiGluBackward(Queue& queue, const SwiGluBackwardArgs& args);

}  // namespace mm01::cuda
