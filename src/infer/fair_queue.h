// Who is served next: higher priority first, and among equals a fair share for each salt.
//
// Start-time fair queueing: a request begins, in virtual time, where the one before it of its salt
// ends, or now if that is later, and ends as much later as it costs. Those that begin first go
// first. So one salt is served in order of arrival, and of several each gets the same share of the
// cost, whoever sends more.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "infer/sequence.h"

namespace mm01::infer {

class FairQueue {
 public:
  void Push(std::unique_ptr<Sequence> sequence, double cost);
  // The first in order for whom `ready` is true; null if there is none.
  std::unique_ptr<Sequence> Take(const std::function<bool(Sequence&)>& ready);
  std::unique_ptr<Sequence> TakeId(Service::Id id);
  int64_t size() const { return static_cast<int64_t>(waiting_.size()); }

 private:
  struct Waiting {
    double begin = 0;
    std::unique_ptr<Sequence> sequence;
  };
  std::unique_ptr<Sequence> Remove(size_t index);

  std::vector<Waiting> waiting_;  // in order
  // Virtual time runs for each priority alone.
  std::map<std::pair<int64_t, std::string>, double> end_;  // of a salt's last request
  std::map<int64_t, double> now_;
};

}  // namespace mm01::infer
