// Matrix products of training, where both sides change from step to step:
//
//   c[m, n] = or +=  sum over k of a[m, k] b[k, n]
//
// with a or b taken as they are or transposed. For a layer  y = x w^T  with w [N, K]:
//
//   y = MatMul(x, w^T)     dx = MatMul(dy, w)     dw += MatMul(dy^T, x)
//
// Letters   c is [M, N], k the dim that is summed over. Rows of all three may be strided.
// Types     float32. On a GPU each may be bf16, with sums in float32; there the order is that of
//           gemm_backward_cuda.h, a function of types and sizes.
// Order     as in gemm.h: k is cut into blocks of 256 from 0, a block is summed in one chain from
//           zero, and blocks are added in order, to c where `add` is set. So MatMul(x, w^T) has the
//           bits of Gemm, and no bit depends on the number of threads.
// Cost      2 M N k flops, and both sides are packed once: room for them is taken from the queue.
// Errors    Shapes that disagree are our own bug: Check throws.
#pragma once

#include <span>

#include "device/queue.h"
#include "kernels/activation/activation_backward.h"
#include "tensor/tensor.h"

namespace mm01 {

struct MatMulArgs {
  Tensor a;  // [M, k], or [k, M] with transpose_a
  Tensor b;  // [k, N], or [N, k] with transpose_b
  Tensor c;  // [M, N]
  bool transpose_a = false;
  bool transpose_b = false;
  bool add = false;  // to what c holds
};

void MatMul(Queue& queue, const MatMulArgs& args);

// Several side by side: the experts of a layer. Problems of no rows are left out; with k = 0, c is
// zeroed or stays as it is.
void MatMulMany(Queue& queue, std::span<const MatMulArgs> problems);

// MatMulMany(problems), then SwiGluOf(swiglu): to the same bits as one after the other, in one pass
// where the problems are experts whose c [M, 2 F], one below the other, is gate beside up.
void MatMulManySwiGlu(Queue& queue, std::span<const MatMulArgs> problems,
                      const SwiGluForwardArgs& swiglu);

// MatMul(product), then SiluOf(silu): in one pass where silu.x is the first columns of product.c.
void MatMulSilu(Queue& queue, const MatMulArgs& product, const SiluForwardArgs& silu);

}  // namespace mm01
