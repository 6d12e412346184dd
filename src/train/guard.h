// Whether a step may change the model: its loss and gradient norm against those of the last steps.
//
//   z = (x - mean) / max(sigma, s |mean|)     over the last `window` steps that were kept;
//                                             s = 0.01 for losses, 0.1 for norms
//
// A step is skipped where loss or norm is not finite, or, once the window is full, where z exceeds
// `sigmas`. Skipped steps do not enter the window. A new stage begins with an empty one, for its
// losses are others.
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "train/recipe.h"

namespace mm01::train {

struct Verdict {
  bool skip = false;
  std::string reason;  // where skipped: "the gradient norm 87.1 is 12.3 sigmas above the mean ..."
  double loss_z = 0;   // 0 while there is no window yet
  double norm_z = 0;
};

class Guard {
 public:
  // What a checkpoint keeps.
  struct State {
    std::deque<double> losses, norms;
    int64_t skipped = 0;         // of the run
    int64_t skipped_in_row = 0;  // up to now

    friend bool operator==(const State&, const State&) = default;
  };

  explicit Guard(const GuardSpec& spec) : spec_(spec) {}

  // Judges a step and takes it into account.
  Verdict Judge(double loss, double norm);
  void BeginStage();
  // So many steps in a row were skipped that going on would not help.
  bool hopeless() const { return state_.skipped_in_row >= spec_.max_skipped; }

  const State& state() const { return state_; }
  void SetState(State state) { state_ = std::move(state); }

 private:
  GuardSpec spec_;
  State state_;
};

}  // namespace mm01::train
