// Matrix products with weights:  out[m, n] = sum over k of x[m, k] w[n, k].
//
// Letters   M rows (tokens), N outputs, K inputs.
// Types     x and out float32; w float32, bf16 or int8, decoded exactly; sums in float32.
// Order     k is cut into blocks of 256 from 0, for int8 into its groups. A block is summed in one
//           chain from zero, an int8 one is multiplied by its scale, and blocks are added in order.
//           So a row's bits depend on that row and on w alone: not on M, on the
//           number of threads, or on where the row stands. A product over part of k (tensor ranks)
//           rounds differently.
// Cost      2 M N K flops. One row reads every byte of w once and is as fast as memory.
// Errors    Shapes that disagree are our own bug: Check throws.
#pragma once

#include <cstdint>
#include <span>

#include "device/queue.h"
#include "kernels/gemm/weight.h"
#include "tensor/tensor.h"

namespace mm01 {

struct GemmArgs {
  Tensor x;         // [M, K] float32
  const Weight* w;  // [N, K]
  Tensor out;       // [M, N] float32, overwritten
};

void Gemm(Queue& queue, const GemmArgs& args);

// Several products side by side, as one pass over the threads: the experts of a layer, or
// projections of the same rows. The same bits as one by one.
void GemmMany(Queue& queue, std::span<const GemmArgs> problems);

}  // namespace mm01
