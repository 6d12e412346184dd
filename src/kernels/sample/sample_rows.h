// The next token of many rows of logits that lie on a device: little more than the tokens comes
// back. Each is the token that Sample (sample.h) draws from the same row, or none.
//
// A draw can fall on few tokens: greedy on one, top-k on k. For these the largest logits come back,
// and Sample of them is Sample of all, to the bit. Where a change or a penalty lowers p tokens, the
// k + p largest are enough. Without top-k a draw depends on sums of exp over all tokens, which the
// device adds up in another order than Sample. They differ by less than 1e-9 of the sum, so a draw
// that a difference of that size cannot change is the same; of any other none is given.
//
// Letters   R rows, V vocabulary.
// None      -1: top-p or min-p that may keep more than 1,024 tokens, a draw within 1e-9 of the
//           border of two tokens, a change above 0, a repetition penalty below 1, penalties without
//           top-k, or a row that is broken. The caller then gets the row and asks Sample.
// Cost      On a GPU about 10 microseconds where all are greedy and nothing is changed, else some
//           200 at V = 200,064, for as many rows as it has multiprocessors; and a copy of at most
//           10 KB a row. The CPU's is for tests.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include "device/queue.h"
#include "kernels/sample/sample.h"
#include "tensor/tensor.h"

namespace mm01 {

struct RowDraw {
  bool is_wanted = true;                               // else none is given
  SamplingParams params;                               // has passed Validate
  std::span<const int32_t> previous;                   // for the repetition penalty
  std::span<const std::pair<int32_t, float>> changes;  // (id, what is added to its logit), in order
  uint64_t request = 0, position = 0;
};

// token[i] becomes that of row i of `logits` [R, V] float32, or -1. Waits for the device.
void SampleRows(Queue& queue, const Tensor& logits, std::span<const RowDraw> draws,
                std::span<int32_t> token);

}  // namespace mm01
