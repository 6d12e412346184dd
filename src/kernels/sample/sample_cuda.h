// What sampling needs of logits that lie on a GPU: the greedy token, or the few tokens that a draw
// by kernels/sample/sample.h can fall on.
//
// Letters   R rows, V vocabulary, of which tokens 0 .. vocab_used - 1 exist.
// Order     Equal logits rank by id, lower first, as on the CPU; -infinity is never taken.
// Cost      One block a row: about 10 microseconds for Greedy and 200 for TopTokens at V = 200,064.
// Errors    Shapes that disagree are our own bug: Check throws. A row with NaN or +infinity, or one
//           in which every token is masked, gives token -1 or count -1.
#pragma once

#include <cstdint>

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01::cuda {

struct GreedyArgs {
  Tensor logits;  // [R, V] float32
  int64_t vocab_used;
  Tensor token;  // [R]    int32
};

// The largest logit of each row.
void Greedy(Queue& queue, const GreedyArgs& args);

struct TopTokensArgs {
  Tensor logits;  // [R, V] float32
  int64_t vocab_used;
  Tensor id;     // [R, k] int32    in ascending order
  Tensor value;  // [R, k] float32  their logits
  Tensor count;  // [R]    int32    how many there are: k, or fewer if fewer are unmasked
};

// The k largest logits of each row. Sample of `value` with 1 <= top_k <= k and no repetition
// penalty gives the place in `id` of the token that Sample of the whole row gives, to the bit.
void TopTokens(Queue& queue, const TopTokensArgs& args);

}  // namespace mm01::cuda
