// convert.h on a GPU.
#pragma once

#include "kernels/convert/convert.h"

namespace mm01::cuda {

void Convert(Queue& queue, const Tensor& from, const Tensor& to);

}  // namespace mm01::cuda
