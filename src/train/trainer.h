// A model in training: takes steps, saves itself, goes on from where it was saved.
//
// One step: every rank takes its part of the step's rows and passes them through its model, losses
// and gradients are added up over the ranks, the guard judges, and the optimizer updates, or
// nothing changes. The next step's rows are made meanwhile. The numbers of a step are a function of
// the recipe, the step and the number of ranks.
//
// Letters   L layers, E experts.
// Errors    Those of reading data. A step that the guard skips is no error; a run of them is:
//           Invalid, and the model is then that of the newest checkpoint.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"
#include "comm/group.h"
#include "device/queue.h"
#include "model/text01/trainer_model.h"
#include "train/data/mixer.h"
#include "train/data/step_data.h"
#include "train/guard.h"
#include "train/optimizer.h"
#include "train/recipe.h"

namespace mm01::train {

using ModelFactory = std::function<Result<std::unique_ptr<TrainerModel>>(
    Queue& queue, const TextConfig& config, const TrainOptions& options)>;

// Where a trainer runs. All that is pointed to must outlive it.
struct TrainerPlace {
  Queue& queue;
  Group& group;
  ModelFactory make_model;
  std::string checkpoints;  // folder
  bool overfit = false;     // every step has the rows of step 0
};

struct StepReport {
  int64_t step = 0;  // from 0; of the step that was taken
  int64_t stage = 0;
  int64_t length = 0;        // of a row
  int64_t tokens = 0;        // of this step
  double loss = 0;           // mean cross entropy of the counted targets, nats
  double auxiliary = 0;      // mean over the passes, without its coefficient
  double gradient_norm = 0;  // before clipping
  double learning_rate = 0;
  Verdict verdict;
  int64_t skipped = 0;                           // steps of the run so far
  std::vector<std::string> sources;              // of the rows, where the step was skipped
  std::vector<std::vector<double>> expert_rows;  // [L][E] over all ranks
  double dropped_rows = 0;
  double data_seconds = 0;  // of this rank, waiting for data
  double seconds = 0;
};

struct ValidationScore {
  int64_t length = 0;
  double loss = 0;
};

class Trainer {
 public:
  // A new run, with weights of the recipe's seed or of the model it begins with.
  static Result<std::unique_ptr<Trainer>> Create(const Recipe& recipe,
                                                 std::shared_ptr<const TrainData> data,
                                                 const TrainerPlace& place);

  // Goes on from the newest whole checkpoint of the folder. False where there is none. `notes` gets
  // a sentence for each that was refused. Called by all ranks, as everything below is.
  Result<bool> Resume(std::vector<std::string>* notes);

  int64_t step() const { return step_; }  // the next to be taken
  int64_t tokens() const { return tokens_; }
  bool done() const { return step_ >= recipe_.total_steps(); }
  const TrainerModel& model() const { return *model_; }
  const TextConfig& config() const { return model_->config(); }
  int64_t optimizer_bytes() const { return optimizer_->bytes(); }

  Result<StepReport> Step();
  Status Save();
  Result<std::vector<ValidationScore>> Validate();
  // Weights in the published layout, config.json and the tokenizer's files; by the first rank.
  Status Export(const std::string& folder);

 private:
  Trainer(const Recipe& recipe, std::shared_ptr<const TrainData> data, const TrainerPlace& place)
      : recipe_(recipe),
        data_(std::move(data)),
        place_(place),
        step_data_(recipe_, *data_, Part(), place.queue.pool().num_threads()),
        guard_(recipe.guard) {}

  struct Losses {
    double cross_entropy = 0, counted = 0, auxiliary = 0, passes = 0, dropped = 0;
    std::vector<std::vector<double>> expert_rows;
  };

  Status EnterStage(int64_t stage);
  StepDataMaker::Part Part() const { return {place_.group.rank(), place_.group.size()}; }
  Result<StepData> TakeData();
  Losses RunPasses(const std::vector<TrainBatch>& passes);
  void AddUp(Losses* losses);
  Status RollBack(const Verdict& verdict);
  Status Load(int64_t step);
  Json State() const;
  Status SetState(const Json& state);

  const Recipe& recipe_;
  std::shared_ptr<const TrainData> data_;
  TrainerPlace place_;
  StepDataMaker step_data_;
  Guard guard_;
  std::unique_ptr<TrainerModel> model_;
  std::unique_ptr<Optimizer> optimizer_;
  int64_t step_ = 0;
  int64_t tokens_ = 0;
  int64_t stage_ = 0;                               // that the model is made for
  std::map<int64_t, std::vector<Row>> validation_;  // by length
};

}  // namespace mm01::train
