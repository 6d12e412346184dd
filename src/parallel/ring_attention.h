// Ring attention: softmax attention over ranks that each hold a part of the tokens.
//
// The pages of keys and values travel around the ring. At each step a rank attends to the pages it
// has at hand, which say at which position they start, and folds the result into what it has by the
// log-sum-exp. Pages that lie after all of a rank's rows see no work.
//
// Letters   N = 1 sequence, G kv heads, K = V = head dim, R ranks.
// Cost      R - 1 steps of the largest part's pages.
#pragma once

#include "comm/group.h"
#include "device/queue.h"
#include "kernels/attention/attention.h"

namespace mm01 {

// As Attention(args), whose cache and rows are this rank's part of one sequence; args.out is
// complete. The ranks of `group` stand in the order of their tokens.
void RingAttention(Queue& queue, Group& group, const AttentionArgs& args);

}  // namespace mm01
