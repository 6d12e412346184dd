// The memory of the sequences that a model is working on: a state slot for each lightning layer,
// and pages of keys and values for each softmax layer. All of it is reserved at once and becomes
// resident as it is used.
//
// A sequence may begin at a position other than 0 only where ranks split it: then this rank holds
// the tokens from `begin` on.
//
// Memory    a slot: K V floats and 2 B K elements a head and lightning layer, whatever the length.
//           a page: 2 B K elements a kv head and softmax layer for B = 64 tokens.
// Errors    Running out of slots or pages is TooLarge, with the numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "device/buffer.h"
#include "device/queue.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/page_copy.h"
#include "kernels/lightning/lightning.h"
#include "model/text01/config.h"
#include "model/text01/weights.h"

namespace mm01 {

struct StateSizes {
  int64_t num_slots = 1;   // sequences at a time
  int64_t max_tokens = 0;  // of all sequences together, rounded up to pages for each
  DType kv_type = DType::kF32;
  Device device = Device::kCpu;
  DType row_type = DType::kF32;  // of the k and v rows in a slot: bf16 only on a GPU
};

class TextState {
 public:
  // Reserves the memory; throws std::bad_alloc if the system refuses.
  TextState(const TextConfig& config, const Shard& shard, const StateSizes& sizes);

  // A slot for a new sequence whose first token here is at position `begin`.
  Result<int32_t> Open(int64_t begin = 0);
  void Close(int32_t slot);

  // Room for `num_tokens` more tokens, which Advance then counts.
  Status Reserve(int32_t slot, int64_t num_tokens);
  void Advance(int32_t slot, int64_t num_tokens);
  // Forgets the newest tokens, back to `length`, which must not lie before the last border of the
  // grid: what came before is no longer in the lightning state.
  void Truncate(int32_t slot, int64_t length);

  // Copies, as plain bytes, of what a sequence needs to go on from a border of the grid: S of all
  // lightning layers there, and the pages before it. They lie as in this state's memory, so they
  // serve a state of the same configuration, types and device only. The sequence begins at 0.
  int64_t border_bytes() const;                       // S of all lightning layers
  int64_t page_bytes() const { return page_bytes_; }  // keys and values of 64 tokens
  static int64_t BorderBefore(int64_t length) { return length / kKvPage * kKvPage; }
  // On a GPU they travel by way of scratch memory there, some 16 MiB at a time.
  // At BorderBefore(length(slot)), which is not 0: out[border_bytes()].
  void CopyBorder(Queue& queue, int32_t slot, std::byte* out) const;
  // Of `count` pages from `first` on, all of whose tokens are there: out[count * page_bytes()].
  void CopyPages(Queue& queue, int32_t slot, int64_t first, int64_t count, std::byte* out) const;
  // The way back, into room that was reserved in a slot that has read nothing; Advance then counts
  // the tokens. `from` may be reused on return.
  void SetBorder(Queue& queue, int32_t slot, const std::byte* from);
  // Forgets the newest tokens back to a border of the grid at which CopyBorder made this copy; at 0
  // none is needed.
  void Rewind(Queue& queue, int32_t slot, int64_t border, const std::byte* from);
  // As CopyPages.
  void SetPages(Queue& queue, int32_t slot, int64_t first, int64_t count, const std::byte* from);

  int64_t begin(int32_t slot) const { return sequence(slot).begin; }
  int64_t length(int32_t slot) const { return sequence(slot).length; }
  std::span<const int32_t> pages(int32_t slot) const { return sequence(slot).pages; }

  // Of layer i, which must be of that kind.
  LightningState lightning(int64_t layer) const;
  PagedKv kv(int64_t layer) const;

  DType kv_type() const { return sizes_.kv_type; }
  DType row_type() const { return sizes_.row_type; }
  Device device() const { return sizes_.device; }
  int64_t num_slots() const { return sizes_.num_slots; }
  int64_t num_open() const;
  int64_t num_pages() const { return num_pages_; }
  int64_t num_free_pages() const { return static_cast<int64_t>(free_pages_.size()); }
  int64_t max_tokens() const { return num_pages_ * kKvPage; }
  int64_t lightning_bytes() const { return lightning_bytes_; }  // reserved
  int64_t kv_bytes_used() const;                                // of open sequences

 private:
  struct Sequence {
    bool open = false;
    int64_t begin = 0;
    int64_t length = 0;
    std::vector<int32_t> pages;
  };
  struct LayerMemory {
    Buffer s, k_rows, v_rows;       // lightning
    Buffer k, v, k_scale, v_scale;  // softmax; a GPU has no scales
  };

  const Sequence& sequence(int32_t slot) const;
  Sequence& sequence(int32_t slot);
  std::vector<PagePool> BorderPools() const;  // of S, in which a slot is a page
  std::vector<PagePool> KvPools() const;
  std::span<const int32_t> PagesOf(int32_t slot, int64_t first, int64_t count) const;
  void WriteBorder(Queue& queue, int32_t slot, const std::byte* from);

  StateSizes sizes_;
  int64_t heads_, kv_heads_, dim_;
  int64_t num_pages_;
  int64_t lightning_bytes_ = 0;
  int64_t page_bytes_ = 0;  // of all layers
  std::vector<LayerKind> kinds_;
  std::vector<LayerMemory> layers_;
  std::vector<Sequence> sequences_;
  std::vector<int32_t> free_pages_;  // the lowest last
};

}  // namespace mm01
