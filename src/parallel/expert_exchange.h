// A mixture of experts over ranks that each hold some of the experts.
//
//   dispatch   each token's row goes to the ranks that hold its experts
//   experts    each rank runs its own on whatever came
//   combine    the rows go home and are added with the token's weights
//
// A group of one rank is the plain path. With more, a row meets the same weights alone or in
// company, and is added in the same order: the result is that of one rank, to the bit.
//
// Letters   T tokens, E experts, k experts a token, D width.
// Cost      2 T k D floats sent and received in all, less what stays.
#pragma once

#include <span>

#include "comm/group.h"
#include "device/queue.h"
#include "kernels/moe/moe.h"

namespace mm01 {

struct ExpertGroups {
  Group& expert;    // the experts are split evenly over these ranks, in order
  Group& replicas;  // these ranks hold the same tokens, and share the work of sending them
};

struct ExpertExchangeArgs {
  Tensor x;                                // [T, D]  float32
  Tensor chosen;                           // [T, k]  int32, from Route
  Tensor weights;                          // [T, k]  float32
  int64_t num_experts = 0;                 // E, of all ranks
  std::span<const ExpertWeights> experts;  // this rank's
  Tensor out;                              // [T, D]  float32, complete on every rank
};

void ExpertExchange(Queue& queue, const ExpertGroups& groups, const ExpertExchangeArgs& args);

}  // namespace mm01
