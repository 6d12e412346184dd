// Training on a terminal: a line a step, and a bar below that stays.
#pragma once

#include <string>

#include "cli/console.h"
#include "train/metrics.h"

namespace mm01::cli {

class TrainScreen {
 public:
  // `notes` must outlive this.
  explicit TrainScreen(const Notes& notes) : notes_(notes) {}
  ~TrainScreen() { Clear(); }
  TrainScreen(const TrainScreen&) = delete;
  TrainScreen& operator=(const TrainScreen&) = delete;

  void Step(const train::StepMetrics& m);
  void Note(const std::string& text);
  // Wipes the bar.
  void Clear();

 private:
  const Notes& notes_;
  std::string bar_;
};

}  // namespace mm01::cli
