// out = f(x w^T), the kernel of grouped_gemm.h with one expert.
//
// Letters   M rows, N outputs, K inputs.
// Types     x, w bf16; out bf16 or float32; sums in float32.
// Order     a row's bits do not depend on M.
// Errors    Shapes that disagree or that the kernel does not take (grouped_gemm.h) are our own bug.
#pragma once

#include "device/queue.h"
#include "kernels/gemm/gemm.h"
#include "tensor/tensor.h"

namespace mm01::cuda {

struct DenseGemmArgs {
  Tensor x;    // [M, K], rows may be strided
  Tensor w;    // [N, K], contiguous
  Tensor out;  // [M, N], rows may be strided
  Activation activation = Activation::kNone;
};

void DenseGemm(Queue& queue, const DenseGemmArgs& args);

}  // namespace mm01::cuda
