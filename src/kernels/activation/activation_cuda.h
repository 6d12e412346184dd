// activation.h on a GPU.
#pragma once

#include "kernels/activation/activation.h"

namespace mm01::cuda {

void Silu(Queue& queue, const Tensor& x);
void SwiGlu(Queue& queue, const Tensor& gate, const Tensor& up);
void BlendShared(Queue& queue, const Tensor& x, const Tensor& shared, const Tensor& logit);

}  // namespace mm01::cuda
