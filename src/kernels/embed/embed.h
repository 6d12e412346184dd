// The model's input: a row of the embedding for a token id, or a row handed in as it is (an image
// feature, say).
//
// Letters   T rows, D width, V vocabulary, M rows handed in.
// Errors    An id outside V or M is our own bug by now: Check throws. On a GPU, whose ids the CPU
//           does not see, such a row is NaN.
#pragma once

#include "device/queue.h"
#include "kernels/gemm/weight.h"
#include "tensor/tensor.h"

namespace mm01 {

struct EmbedArgs {
  Tensor ids;            // [T]     int32: a token id, or -1 - m for row m of `embeddings`
  const Weight* weight;  // [V, D]
  Tensor embeddings;     // [M, D]  float32; may be empty
  Tensor out;            // [T, D]  float32, on a GPU also bf16
};

void Embed(Queue& queue, const EmbedArgs& args);

}  // namespace mm01
