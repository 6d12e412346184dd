#include "train/data/step_data.h"

#include <utility>

namespace mm01::train {

StepDataMaker::StepDataMaker(const Recipe& recipe, const TrainData& data, Part part,
                             int num_threads)
    : part_(part), mixer_(recipe, data), pool_(num_threads) {}

StepDataMaker::~StepDataMaker() {
  if (ahead_.valid()) ahead_.wait();
}

void StepDataMaker::Seek(const DataPosition& position) {
  if (ahead_.valid()) ahead_.wait();
  ahead_ = {};
  begun_.reset();
  position_ = position;
}

Result<StepData> StepDataMaker::Take(int64_t step, std::optional<int64_t> next) {
  if (begun_ != step) {
    Seek(position_);
    Begin(step);
  }
  Result<StepData> data = ahead_.get();
  begun_.reset();
  if (!data.ok()) return data;
  position_ = data->after;
  if (next) Begin(*next);
  return data;
}

void StepDataMaker::Begin(int64_t step) {
  begun_ = step;
  mixer_.Seek(position_);
  ahead_ = std::async(std::launch::async, [this, step] { return Make(step); });
}

Result<StepData> StepDataMaker::Make(int64_t step) {
  StepData data;
  data.plans = mixer_.Next(step);
  MM01_ASSIGN_OR_RETURN(data.rows, mixer_.MakeMany(pool_, PartOf(data.plans, part_)));
  data.after = mixer_.position();
  return data;
}

}  // namespace mm01::train
