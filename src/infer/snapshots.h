// Snapshots: what a model remembers of the beginning of a text, kept so that a later text with the
// same beginning does not read it again.
//
// A snapshot stands at a position of the grid of 64 and holds S of all lightning layers there, and
// the keys and values of all tokens before it. These it shares: they lie in segments, runs of
// pages, and a snapshot lists those of the one before it on the same text and one more of its own.
// Any snapshot may go without harm to the others; a segment goes with the last that lists it.
// Snapshots are found by content (prefix_keys.h), so texts may branch anywhere.
//
// Memory    Bytes of all snapshots and segments alive stay within the budget. Room is made by
//           dropping the least recently used; what does not fit even so is not kept.
// Threads   One thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "device/buffer.h"
#include "device/queue.h"
#include "infer/prefix_keys.h"
#include "model/text01/state.h"

namespace mm01::infer {

// Memory that counts towards a total for as long as it lives.
class CountedBuffer {
 public:
  CountedBuffer(int64_t bytes, std::shared_ptr<std::atomic<int64_t>> total)
      : buffer_(bytes), total_(std::move(total)) {
    *total_ += bytes;
  }
  ~CountedBuffer() { *total_ -= buffer_.bytes(); }
  CountedBuffer(const CountedBuffer&) = delete;  // nor moved: it stays where it was made
  CountedBuffer& operator=(const CountedBuffer&) = delete;

  std::byte* data() const { return buffer_.data(); }
  int64_t bytes() const { return buffer_.bytes(); }

 private:
  Buffer buffer_;
  std::shared_ptr<std::atomic<int64_t>> total_;
};

// Keys and values of the tokens from `begin` to `end`, page by page (TextState::CopyPages).
struct Segment {
  int64_t begin = 0, end = 0;
  CountedBuffer pages;
};

struct Snapshot {
  PrefixKey key;
  int64_t position = 0;
  CountedBuffer border;                                  // TextState::CopyBorder
  std::vector<std::shared_ptr<const Segment>> segments;  // end to end, from 0 to `position`

  // The one with page `index`, of tokens 64 index .. 64 index + 63.
  const Segment& SegmentOf(int64_t index) const;
  const std::byte* Page(int64_t index, int64_t page_bytes) const;
};

class Snapshots {
 public:
  Snapshots(const TextState& state, int64_t budget_bytes);

  // The one at the greatest position up to `limit` of the text with these keys; null if there is
  // none. It counts as used.
  std::shared_ptr<const Snapshot> Find(std::span<const PrefixKey> keys, int64_t limit);
  // Of the sequence, at its last border; `keys` are those of its tokens, one a block up to there at
  // least. Null if it does not fit, or if there is no border yet. Costs a copy of S, and of the
  // pages since the last snapshot of the same text.
  std::shared_ptr<const Snapshot> Take(Queue& queue, const TextState& state, int32_t slot,
                                       std::span<const PrefixKey> keys);

  // Room for a snapshot that is read from a file: S, and a segment from `begin` to `end`. Null if
  // it does not fit. `before` is in memory and ends at `begin`, or is null for begin 0.
  std::shared_ptr<Snapshot> Allocate(const PrefixKey& key, const Snapshot* before, int64_t end);
  void Insert(std::shared_ptr<const Snapshot> snapshot);
  void Drop(const PrefixKey& key) { entries_.erase(key); }

  // How far apart to take snapshots of a text: `wanted`, or more where S of them all would take
  // more than a quarter of the budget.
  int64_t Interval(int64_t num_tokens, int64_t wanted) const;

  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  int64_t bytes() const { return *bytes_; }
  int64_t taken() const { return taken_; }
  int64_t evicted() const { return evicted_; }

 private:
  struct Entry {
    std::shared_ptr<const Snapshot> snapshot;
    uint64_t used = 0;  // the clock, then
  };
  // The last on the text before `end`, if any.
  const Snapshot* Before(std::span<const PrefixKey> keys, int64_t end) const;
  bool MakeRoom(int64_t bytes, int64_t kept_bytes);

  int64_t border_bytes_, page_bytes_, budget_bytes_;
  std::unordered_map<PrefixKey, Entry, PrefixKeyHash> entries_;
  std::shared_ptr<std::atomic<int64_t>> bytes_ = std::make_shared<std::atomic<int64_t>>(0);
  uint64_t clock_ = 0;
  int64_t taken_ = 0, evicted_ = 0;
};

// The way back of a snapshot into an empty slot with enough room, a part at a time: gigabytes take
// seconds, in which others want their next token.
class Restoring {
 public:
  explicit Restoring(std::shared_ptr<const Snapshot> snapshot) : snapshot_(std::move(snapshot)) {}

  // Copies pages of about `most_bytes`, one at least. True when the slot stands where the snapshot
  // does.
  bool Go(Queue& queue, TextState& state, int32_t slot, int64_t most_bytes);

 private:
  std::shared_ptr<const Snapshot> snapshot_;
  int64_t next_page_ = 0;
};

}  // namespace mm01::infer
