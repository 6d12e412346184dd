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

  int64_t num_rows() const { return num_rows_; }
  int64_t num_sequences() const { return num_sequences_; }
  int64_t max_rows() const { return max_rows_; }  // of one sequence

  // All that ops depend on beside the contents of memory (device/graph.h).
  std::vector<int64_t> GraphKey(const void* hidden) const;

  // On the device of the model's queue.
  const Tensor& ids() const { return ids_; }                  // [T]
  const Tensor& cu_seqlens() const { return cu_seqlens_; }    // [N + 1]
  const Tensor& slot() const { return slot_; }                // [N]
  const Tensor& held() const { return held_; }                // [N]  tokens before
  const Tensor& length() const { return length_; }            // [N]  and with these
  const Tensor& begin() const { return begin_; }              // [N]  position of the first token
  const Tensor& position() const { return position_; }        // [N]  position of the first row
  const Tensor& block_table() const { return block_table_; }  // [N, M]
  const Tensor& cos() const { return cos_; }                  // [T, R / 2]
  const Tensor& sin() const { return sin_; }

 private:
  Scratch scratch_;
  int64_t num_rows_ = 0, num_sequences_ = 0, max_rows_ = 0;
  Tensor ids_, cu_seqlens_, slot_, held_, length_, begin_, position_, block_table_, cos_, sin_;
};

}  // namespace mm01
