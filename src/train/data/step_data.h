// The rows of the next step, made while the one before is computed.
//
// What is ready ahead is a function of the recipe and the position alone, and the position that a
// checkpoint keeps is that behind the last step which was taken: making rows ahead does not show.
// Threads   One caller; the rows are made by a thread and a pool of its own.
#pragma once

#include <cstdint>
#include <future>
#include <optional>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "train/data/mixer.h"

namespace mm01::train {

struct StepData {
  std::vector<RowPlan> plans;  // of all ranks
  std::vector<Row> rows;       // of this rank
  DataPosition after;
};

class StepDataMaker {
 public:
  // Rank `rank` of `num_ranks` gets neighbouring rows. Recipe and data must outlive this.
  struct Part {
    int rank = 0;
    int num_ranks = 1;
  };
  StepDataMaker(const Recipe& recipe, const TrainData& data, Part part, int num_threads);
  ~StepDataMaker();

  // Behind the last step that was taken.
  const DataPosition& position() const { return position_; }
  void Seek(const DataPosition& position);

  // The data of a step, which is then taken; those of `next` are begun where there is one. Errors:
  // those of reading data.
  Result<StepData> Take(int64_t step, std::optional<int64_t> next);

 private:
  void Begin(int64_t step);
  Result<StepData> Make(int64_t step);

  const Part part_;
  Mixer mixer_;
  ThreadPool pool_;
  DataPosition position_;
  std::optional<int64_t> begun_;  // the step whose rows `ahead_` makes
  std::future<Result<StepData>> ahead_;
};

// Items of a rank: neighbours, in order of rank.
template <typename T>
std::vector<T> PartOf(const std::vector<T>& items, StepDataMaker::Part part) {
  const auto n = std::ssize(items);
  return {items.begin() + n * part.rank / part.num_ranks,
          items.begin() + n * (part.rank + 1) / part.num_ranks};
}

}  // namespace mm01::train
