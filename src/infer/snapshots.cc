#include "infer/snapshots.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace mm01::infer {
namespace {

size_t KeyIndex(int64_t position) {
  return static_cast<size_t>(position / kBlock - 1);
}

}  // namespace

const Segment& Snapshot::SegmentOf(int64_t index) const {
  const auto s = std::ranges::upper_bound(segments, index * kBlock, {},
                                          [](const auto& segment) { return segment->end; });
  Check(s != segments.end(), "the snapshot has no such page");
  return **s;
}

const std::byte* Snapshot::Page(int64_t index, int64_t page_bytes) const {
  const Segment& segment = SegmentOf(index);
  return segment.pages.data() + (index - segment.begin / kBlock) * page_bytes;
}

Snapshots::Snapshots(const TextState& state, int64_t budget_bytes)
    : border_bytes_(state.border_bytes()),
      page_bytes_(state.page_bytes()),
      budget_bytes_(budget_bytes) {}

const Snapshot* Snapshots::Before(std::span<const PrefixKey> keys, int64_t end) const {
  for (int64_t at = std::min(end, std::ssize(keys) * kBlock) / kBlock * kBlock; at > 0;
       at -= kBlock) {
    const auto found = entries_.find(keys[KeyIndex(at)]);
    if (found != entries_.end()) return found->second.snapshot.get();
  }
  return nullptr;
}

std::shared_ptr<const Snapshot> Snapshots::Find(std::span<const PrefixKey> keys, int64_t limit) {
  const Snapshot* found = Before(keys, limit);
  if (!found) return nullptr;
  Entry& entry = entries_.at(found->key);
  entry.used = ++clock_;
  return entry.snapshot;
}

// `kept_bytes` are needed too, and there already.
bool Snapshots::MakeRoom(int64_t bytes, int64_t kept_bytes) {
  if (bytes + kept_bytes > budget_bytes_) return false;
  while (*bytes_ + bytes > budget_bytes_) {
    if (entries_.empty()) return false;  // the rest is in use elsewhere
    const auto oldest =
        std::ranges::min_element(entries_, {}, [](const auto& e) { return e.second.used; });
    entries_.erase(oldest);
    ++evicted_;
  }
  return true;
}

std::shared_ptr<Snapshot> Snapshots::Allocate(const PrefixKey& key, const Snapshot* before,
                                              int64_t end) {
  const int64_t begin = before ? before->position : 0;
  // From here on `before` may go; its segments may not.
  auto segments = before ? before->segments : decltype(before->segments){};
  const int64_t page_bytes = (end - begin) / kBlock * page_bytes_;
  if (!MakeRoom(border_bytes_ + page_bytes, begin / kBlock * page_bytes_)) return nullptr;
  segments.emplace_back(
      new Segment{.begin = begin, .end = end, .pages = CountedBuffer(page_bytes, bytes_)});
  return std::shared_ptr<Snapshot>(new Snapshot{.key = key,
                                                .position = end,
                                                .border = CountedBuffer(border_bytes_, bytes_),
                                                .segments = std::move(segments)});
}

void Snapshots::Insert(std::shared_ptr<const Snapshot> snapshot) {
  const PrefixKey key = snapshot->key;
  entries_[key] = {.snapshot = std::move(snapshot), .used = ++clock_};
}

std::shared_ptr<const Snapshot> Snapshots::Take(Queue& queue, const TextState& state, int32_t slot,
                                                std::span<const PrefixKey> keys) {
  const int64_t position = TextState::BorderBefore(state.length(slot));
  if (position == 0) return nullptr;
  Check(std::ssize(keys) * kBlock >= position, "a key is missing");
  const PrefixKey& key = keys[KeyIndex(position)];
  if (const auto known = entries_.find(key); known != entries_.end()) {
    known->second.used = ++clock_;
    return known->second.snapshot;
  }
  const std::shared_ptr<Snapshot> snapshot =
      Allocate(key, Before(keys, position - kBlock), position);
  if (!snapshot) return nullptr;
  state.CopyBorder(queue, slot, snapshot->border.data());
  const Segment& segment = *snapshot->segments.back();
  state.CopyPages(queue, slot, segment.begin / kBlock, (segment.end - segment.begin) / kBlock,
                  segment.pages.data());
  Insert(snapshot);
  ++taken_;
  return snapshot;
}

int64_t Snapshots::Interval(int64_t num_tokens, int64_t wanted) const {
  const int64_t most =
      std::max<int64_t>(1, budget_bytes_ / 4 / std::max<int64_t>(1, border_bytes_));
  const int64_t least = (num_tokens + most - 1) / most;
  return (std::max(wanted, least) + kBlock - 1) / kBlock * kBlock;
}

bool Restoring::Go(Queue& queue, TextState& state, int32_t slot, int64_t most_bytes) {
  const int64_t page_bytes = state.page_bytes(), end = snapshot_->position / kBlock;
  if (page_bytes == 0) next_page_ = end;
  for (int64_t left = page_bytes > 0 ? std::max<int64_t>(1, most_bytes / page_bytes) : 0;
       left > 0 && next_page_ < end;) {
    const Segment& segment = snapshot_->SegmentOf(next_page_);
    const int64_t count = std::min(left, segment.end / kBlock - next_page_);
    state.SetPages(queue, slot, next_page_, count, snapshot_->Page(next_page_, page_bytes));
    next_page_ += count;
    left -= count;
  }
  if (next_page_ < end) return false;
  state.SetBorder(queue, slot, snapshot_->border.data());
  state.Advance(slot, snapshot_->position);
  return true;
}

}  // namespace mm01::infer
