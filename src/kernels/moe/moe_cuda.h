// moe.h on a GPU.
#pragma once

#include "kernels/moe/moe.h"

namespace mm01::cuda {

void Moe(Queue& queue, const MoeArgs& args);

}  // namespace mm01::cuda
