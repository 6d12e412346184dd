// fill.h on a GPU.
#pragma once

#include "kernels/fill/fill.h"

namespace mm01::cuda {

void Fill(Queue& queue, const Tensor& x, float value);

}  // namespace mm01::cuda
