// gemm_backward.h on a GPU: a, b and c may each be float32 or bf16. What a and b share a type for,
// with c of that type or float32 and rows at multiples of 16 bytes, goes through cuBLASLt
// (kernels/cuda/cublaslt.h); all else is added up in float32, one chain over k for each number.
#pragma once

#include <span>

#include "kernels/gemm/gemm_backward.h"

namespace mm01::cuda {

void MatMul(Queue& queue, const MatMulArgs& args);
void MatMulMany(Queue& queue, std::span<const MatMulArgs> problems);

}  // namespace mm01::cuda
