#include "device/queue.h"

#include <algorithm>

#include "base/check.h"

namespace mm01 {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kMinChunk = 1 << 20;

}  // namespace

int64_t Queue::scratch_bytes() const {
  int64_t sum = 0;
  for (const Chunk& c : chunks_) sum += c.memory.bytes();
  return sum;
}

Scratch::Scratch(Queue& queue)
    : queue_(queue),
      num_chunks_(queue.chunks_.size()),
      used_(queue.chunks_.empty() ? 0 : queue.chunks_.back().used) {}

Scratch::~Scratch() {
  auto& chunks = queue_.chunks_;
  if (num_chunks_ > 0) {
    for (std::size_t i = num_chunks_; i < chunks.size(); ++i) chunks[i].used = 0;
    // Later chunks stay until the outermost scope ends, which then trades them all for one.
    chunks[num_chunks_ - 1].used = used_;
  } else {
    for (auto& c : chunks) c.used = 0;
  }
  const bool outermost =
      std::all_of(chunks.begin(), chunks.end(), [](auto& c) { return c.used == 0; });
  if (outermost && chunks.size() > 1) {
    const int64_t total = queue_.scratch_bytes();
    chunks.clear();
    chunks.push_back({.memory = Buffer(total)});
  }
}

void* Scratch::GetBytes(int64_t bytes) {
  Check(bytes >= 0, "scratch of negative size");
  const int64_t need = (bytes + kAlign - 1) / kAlign * kAlign;
  auto& chunks = queue_.chunks_;
  if (chunks.empty() || chunks.back().used + need > chunks.back().memory.bytes()) {
    chunks.push_back({.memory = Buffer(std::max({need, kMinChunk, queue_.scratch_bytes()}))});
  }
  auto& top = chunks.back();
  void* p = top.memory.data() + top.used;
  top.used += need;
  return p;
}

}  // namespace mm01
