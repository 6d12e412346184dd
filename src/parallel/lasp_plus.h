// LASP+: lightning attention over ranks that each hold a part of the tokens.
//
// Every rank runs its part as if nothing came before, and makes its local state M_r, decayed to the
// end of the part. One all-gather later each rank works out what came before it,
//
//   S_in(0) = 0,   S_in(r + 1) = exp(-slope n_r) S_in(r) + M_r
//
// and adds exp(-slope (t + 1)) q_t S_in(r) to its rows. No rank waits for another's sums.
//
// Letters   n_r tokens of rank r, H heads, K = V = head dim.
// Cost      one all-gather of H K V floats a rank.
// Source    [MM01] MiniMax-01, arXiv:2501.08313, 3.2.2.
#pragma once

#include "comm/group.h"
#include "device/queue.h"
#include "kernels/lightning/lightning.h"

namespace mm01 {

// After Lightning(args) for one sequence that began empty on every rank of `group`: completes
// args.out, the ranks standing in the order of their tokens. Leaves the slots as they are: local.
void AddEarlierRanks(Queue& queue, Group& group, const LightningArgs& args);

}  // namespace mm01
