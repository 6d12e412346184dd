#include "infer/fair_queue.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace mm01::infer {

void FairQueue::Push(std::unique_ptr<Sequence> sequence, double cost) {
  const int64_t priority = sequence->request.priority;
  double& end = end_[{priority, sequence->request.salt}];
  const double begin = std::max(now_[priority], end);
  end = begin + cost;
  const auto place = std::ranges::upper_bound(
      waiting_, std::tuple(-priority, begin, sequence->id), {}, [](const Waiting& w) {
        return std::tuple(-int64_t{w.sequence->request.priority}, w.begin, w.sequence->id);
      });
  waiting_.insert(place, {.begin = begin, .sequence = std::move(sequence)});
}

std::unique_ptr<Sequence> FairQueue::Take(const std::function<bool(Sequence&)>& ready) {
  for (size_t i = 0; i < waiting_.size(); ++i) {
    if (!ready(*waiting_[i].sequence)) continue;
    const int64_t priority = waiting_[i].sequence->request.priority;
    double& now = now_[priority];
    now = std::max(now, waiting_[i].begin);
    std::erase_if(
        end_, [&](const auto& salt) { return salt.first.first == priority && salt.second <= now; });
    return Remove(i);
  }
  return nullptr;
}

std::unique_ptr<Sequence> FairQueue::TakeId(Service::Id id) {
  for (size_t i = 0; i < waiting_.size(); ++i) {
    if (waiting_[i].sequence->id == id) return Remove(i);
  }
  return nullptr;
}

std::unique_ptr<Sequence> FairQueue::Remove(size_t index) {
  std::unique_ptr<Sequence> sequence = std::move(waiting_[index].sequence);
  waiting_.erase(waiting_.begin() + static_cast<int64_t>(index));
  if (waiting_.empty()) {
    end_.clear();
    now_.clear();
  }
  return sequence;
}

}  // namespace mm01::infer
