// norm_backward.h on a GPU: each matrix is float32 or bf16, weights and d_weight are float32.
#pragma once

#include "kernels/norm/norm_backward.h"

namespace mm01::cuda {

void NormBackward(Queue& queue, const NormBackwardArgs& args);
void GatedNormBackward(Queue& queue, const GatedNormBackwardArgs& args);

}  // namespace mm01::cuda
