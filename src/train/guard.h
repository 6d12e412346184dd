// Whether a step may change the model: its loss and gradient norm against those of the last steps.
//
//   z = (x - mean) / max(sigma, s)     over the last `window` steps; of losses x is the loss itself
//                                      and s = 0.02 |mean|, of norms their logarithm and s = 0.2
//
// A step is skipped where loss or norm is not finite, or, once the window is full, where z exceeds
// `sigmas`. A norm differs by factors: it may double within some steps where a model learns
// something new, and late in a run a batch of other data has twice the norm of the last ones; with
// the defaults it must be 3.3 times the mean at least before it is called a spike.
//
// A skipped step enters the window as the largest value that would have been kept. So a level that
// has changed for good is taken after a few steps, and one far off ends the run after max_skipped.
// A new stage begins with an empty window, for its losses are others.
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
