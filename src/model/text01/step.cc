#include "model/text01/step.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "base/check.h"
#include "kernels/rope/rope.h"

namespace mm01 {
namespace {

// Arrays of integers that go to the device as one copy.
class Packed {
 public:
  // Returns where the array begins, in bytes.
  template <typename T>
  size_t Add(const std::vector<T>& values) {
    const size_t at = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(at + values.size() * sizeof(T));
    std::ranges::copy(values, reinterpret_cast<T*>(bytes_.data() + at));
    return at;
  }
  std::byte* CopyTo(Queue& queue, Scratch& scratch) const {
    const auto size = static_cast<int64_t>(bytes_.size());
    auto* memory = scratch.Get<std::byte>(size);
    queue.CopyToDevice(memory, bytes_.data(), size);
    return memory;
  }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

Step::Step(const TextModel& model, const TextBatch& batch) : scratch_(model.queue) {
  const TextState& state = model.state;
  std::vector<int64_t> cu_seqlens = {0}, held, length, begin, position, row_position;
  std::vector<int32_t> slot;
  int64_t table_width = 0;
  for (const TextBatch::Sequence& s : batch.sequences) {
    Check(std::ranges::find(slot, s.slot) == slot.end(), "a slot twice in one batch");
    cu_seqlens.push_back(cu_seqlens.back() + s.num_rows);
    slot.push_back(s.slot);
    held.push_back(state.length(s.slot));
    length.push_back(state.length(s.slot) + s.num_rows);
    begin.push_back(state.begin(s.slot));
    position.push_back(begin.back() + held.back());
    for (int64_t i = 0; i < s.num_rows; ++i) row_position.push_back(position.back() + i);
    table_width = std::max(table_width, std::ssize(state.pages(s.slot)));
    max_rows_ = std::max(max_rows_, s.num_rows);
  }
  // Few widths, so that a graph of a step serves for many tokens.
  table_width = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(table_width)));
  num_rows_ = cu_seqlens.back();
  num_sequences_ = std::ssize(slot);
  Check(num_rows_ == std::ssize(batch.ids), "ids and sequences disagree");
  std::vector<int32_t> table(static_cast<size_t>(num_sequences_ * table_width), -1);
  for (size_t n = 0; n < slot.size(); ++n) {
    std::ranges::copy(state.pages(slot[n]), table.begin() + static_cast<int64_t>(n) * table_width);
  }

  Packed packed;
  const size_t at[] = {packed.Add(batch.ids), packed.Add(cu_seqlens),   packed.Add(slot),
                       packed.Add(held),      packed.Add(length),       packed.Add(begin),
                       packed.Add(position),  packed.Add(row_position), packed.Add(table)};
  std::byte* memory = packed.CopyTo(model.queue, scratch_);
  ids_ = Tensor(DType::kI32, memory + at[0], {num_rows_});
  cu_seqlens_ = Tensor(DType::kI64, memory + at[1], {num_sequences_ + 1});
  slot_ = Tensor(DType::kI32, memory + at[2], {num_sequences_});
  held_ = Tensor(DType::kI64, memory + at[3], {num_sequences_});
  length_ = Tensor(DType::kI64, memory + at[4], {num_sequences_});
  begin_ = Tensor(DType::kI64, memory + at[5], {num_sequences_});
  position_ = Tensor(DType::kI64, memory + at[6], {num_sequences_});
  const Tensor rows(DType::kI64, memory + at[7], {num_rows_});
  block_table_ = Tensor(DType::kI32, memory + at[8], {num_sequences_, table_width});

  const TextConfig& config = model.weights.config;
  if (config.num_softmax_layers() == 0) return;
  cos_ = scratch_.GetRows(DType::kF32, num_rows_, config.rotary_dim / 2);
  sin_ = scratch_.GetRows(DType::kF32, num_rows_, config.rotary_dim / 2);
  RopeTable(model.queue, rows, config.rope_theta, cos_, sin_);
}

std::vector<int64_t> Step::GraphKey(const void* hidden) const {
  return {num_rows_, num_sequences_, block_table_.dim(1), std::bit_cast<int64_t>(ids_.data),
          std::bit_cast<int64_t>(hidden)};
}

}  // namespace mm01
