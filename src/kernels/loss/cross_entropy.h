// The last product of the model and the loss of its logits in one, for training:
//
//   logits = x weight^T over the rows of weight that are tokens
//   loss   = sum over counted t of  log sum_v exp(logits_tv) - logits_t,target
//
// Rows are worked in chunks, so that the logits of all rows never exist together: of kLossRows
// rows, on a GPU of kLossLogits logits where these are more rows.
//
// Letters   T rows, D width, V rows of weight, of which the first U are tokens.
// Types     float32, on a GPU also bf16 but for d_weight; the logarithm of each row and the sum
//           over rows in double.
// Order     chunks are counted from row 0, and rows and chunks are added in order: no bit depends
//           on the number of threads.
// Cost      2 T U D flops for the loss, 6 T U D with gradients. Room for a chunk's logits.
// Errors    Shapes that disagree, or a target outside U, are our own bug: Check throws.
#pragma once

#include <cstdint>
#include <span>

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

inline constexpr int64_t kLossRows = 256;
inline constexpr int64_t kLossLogits = int64_t{1} << 26;

struct LinearCrossEntropyArgs {
  Tensor x;                          // [T, D]
  Tensor weight;                     // [V, D]
  std::span<const int32_t> targets;  // [T]     -1: not counted
  int64_t vocab_used = 0;            // U
  double scale = 1.0;                // the gradients are those of scale * loss
  Tensor d_x;                        // [T, D]  overwritten; may be empty, then d_weight is too
  Tensor d_weight;                   // [V, D]  added to
};

struct CrossEntropy {
  double sum = 0.0;  // nats
  int64_t counted = 0;
};

CrossEntropy LinearCrossEntropy(Queue& queue, const LinearCrossEntropyArgs& args);

}  // namespace mm01
