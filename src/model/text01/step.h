// What every layer of one step shares: where each row stands, and where its sequence keeps its
// state.
#pragma once

#include <cstdint>
#include <vector>

#include "model/text01/forward.h"

namespace mm01 {

class Step {
 public:
  Step(const TextModel& model, const TextBatch& batch);

  int64_t num_rows() const { return cu_seqlens_.back(); }
  int64_t num_sequences() const { return static_cast<int64_t>(slot_.size()); }

  Tensor cu_seqlens() const { return Tensor(cu_seqlens_.data(), {num_sequences() + 1}); }
  Tensor slot() const { return Tensor(slot_.data(), {num_sequences()}); }
  Tensor held() const { return Tensor(held_.data(), {num_sequences()}); }      // tokens before
  Tensor length() const { return Tensor(length_.data(), {num_sequences()}); }  // and with these
  Tensor begin() const { return Tensor(begin_.data(), {num_sequences()}); }    // of the sequence
  Tensor position() const {
    return Tensor(position_.data(), {num_sequences()});
  }  // of the first row
  Tensor block_table() const { return Tensor(table_.data(), {num_sequences(), table_width_}); }
  Tensor cos() const { return Tensor(cos_.data(), {num_rows(), half_}); }
  Tensor sin() const { return Tensor(sin_.data(), {num_rows(), half_}); }

 private:
  std::vector<int64_t> cu_seqlens_;
  std::vector<int32_t> slot_;
  std::vector<int64_t> held_, length_, begin_, position_;
  std::vector<int32_t> table_;
  int64_t table_width_ = 0;
  std::vector<float> cos_, sin_;
  int64_t half_ = 0;
};

}  // namespace mm01
