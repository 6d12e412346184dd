// gemm.h on a GPU.
#pragma once

#include <span>

#include "kernels/gemm/gemm.h"

namespace mm01::cuda {

void Gemm(Queue& queue, const GemmArgs& args);
void GemmMany(Queue& queue, std::span<const GemmArgs> problems);

}  // namespace mm01::cuda
