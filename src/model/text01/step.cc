#include "model/text01/step.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/rope/rope.h"

namespace mm01 {

Step::Step(const TextModel& model, const TextBatch& batch) {
  const TextState& state = model.state;
  cu_seqlens_.push_back(0);
  std::vector<int64_t> row_position;
  for (const TextBatch::Sequence& s : batch.sequences) {
    Check(std::find(slot_.begin(), slot_.end(), s.slot) == slot_.end(),
          "a slot twice in one batch");
    cu_seqlens_.push_back(cu_seqlens_.back() + s.num_rows);
    slot_.push_back(s.slot);
    held_.push_back(state.length(s.slot));
    length_.push_back(state.length(s.slot) + s.num_rows);
    begin_.push_back(state.begin(s.slot));
    position_.push_back(begin_.back() + held_.back());
    for (int64_t i = 0; i < s.num_rows; ++i) row_position.push_back(position_.back() + i);
    table_width_ = std::max(table_width_, static_cast<int64_t>(state.pages(s.slot).size()));
  }
  Check(num_rows() == static_cast<int64_t>(batch.ids.size()), "ids and sequences disagree");
  table_.assign(static_cast<size_t>(num_sequences() * table_width_), -1);
  for (size_t n = 0; n < slot_.size(); ++n) {
    std::ranges::copy(state.pages(slot_[n]),
                      table_.begin() + static_cast<int64_t>(n) * table_width_);
  }
  const TextConfig& config = model.weights.config;
  if (config.num_softmax_layers() == 0) return;
  half_ = config.rotary_dim / 2;
  cos_.resize(static_cast<size_t>(num_rows() * half_));
  sin_.resize(cos_.size());
  RopeTable(model.queue, Tensor(row_position.data(), {num_rows()}), config.rope_theta, cos(),
            sin());
}

}  // namespace mm01
