// Ranks as threads of one process. Collectives copy straight from one rank's memory to another's,
// so what a model does on several devices can be tested on a machine that has none.
#pragma once

#include <functional>

#include "comm/group.h"

namespace mm01 {

class ThreadRanks {
 public:
  explicit ThreadRanks(int num_ranks);  // >= 1

  // Calls body(rank, group) for every rank, each in a thread of its own (rank 0 in the caller's),
  // and returns when all are done. The group, and every group split from it, ends with the call.
  //
  // The first exception that leaves a rank is thrown here again; the other ranks leave their
  // collectives with PeerError. A rank that returns while another waits for it is our own bug: the
  // one that waits gets Bug. So a run does not hang as long as the ranks wait for nothing else.
  void Run(const std::function<void(int rank, Group& group)>& body) const;

 private:
  int num_ranks_;
};

}  // namespace mm01
