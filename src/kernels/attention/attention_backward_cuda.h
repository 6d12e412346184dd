// attention_backward.h on a GPU.
//
// Rows are float32 or bf16, lse float32. Where q, k, v, d_out and the gradients are bf16, K is 64
// or 128 and rows begin at multiples of 16 bytes, tiles of 128 rows by 64 or 128 go through the
// tensor cores, with P and D rounded to bf16; everything else with K up to 256 takes a plain kernel
// with float32 sums. T stays below 2^30. Neither holds more than 2 floats a row and head beside the
// arguments.
#pragma once

#include "kernels/attention/attention_backward.h"

namespace mm01::cuda {

void AttentionPass(Queue& queue, const AttentionPassArgs& args);
void AttentionBackward(Queue& queue, const AttentionBackwardArgs& args);

}  // namespace mm01::cuda
