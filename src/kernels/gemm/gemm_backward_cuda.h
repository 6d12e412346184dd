// gemm_backward.h on a GPU: a, b and c may each be float32 or bf16. What a and b share a type for,
// with c of that type or float32 and rows at multiples of 16 bytes, goes through cuBLASLt
// (kernels/cuda/cublaslt.h). A router's logits, few columns of bf16 a and float32 b, are added up
// in 32 chains, all else in one chain over k for each number, both in float32.
//
// MatMulMany takes one launch (kernels/cuda/grouped_gemm.h) for experts of bf16 whose rows of a and
// of c follow each other, and whose b, of one shape, lie equally far apart in memory, and
// MatMulManySwiGlu as many; and two for the gradients of small matrices of one shape
// (kernels/cuda/grouped_gradient.h), c += a^T b of bf16 rows that follow each other.
//
// MatMulSilu takes one pass of the same kernel for x w^T of bf16 and k of 1,024 at most. Where k is
// larger, the library's product may be faster by more than a pass over its results takes.
#pragma once

#include <span>

#include "kernels/gemm/gemm_backward.h"

namespace mm01::cuda {

void MatMul(Queue& queue, const MatMulArgs& args);
void MatMulMany(Queue& queue, std::span<const MatMulArgs> problems);
void MatMulManySwiGlu(Queue& queue, std::span<const MatMulArgs> problems,
                      const SwiGluForwardArgs& swiglu);
void MatMulSilu(Queue& queue, const MatMulArgs& product, const SiluForwardArgs& silu);

}  // namespace mm01::cuda
