#include "io/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

#include "base/check.h"
#include "base/rng.h"

namespace mm01 {
namespace {

constexpr uint64_t kEmpty = ~uint64_t{0};
constexpr uint32_t kNone = ~uint32_t{0};
constexpr int32_t kNoRank = -1;
constexpr size_t kMaxProbes = 256;  // honest tables of half load stay below 64
constexpr size_t kCacheSlots = 1 << 13;
constexpr size_t kCacheFrom = 1 << 12;  // bytes of text

uint64_t PairOf(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t HashBytes(std::string_view bytes) {
  uint64_t hash = bytes.size();
  while (bytes.size() >= 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data(), 8);
    hash = Mix64(hash ^ word);
    bytes.remove_prefix(8);
  }
  uint64_t word = 0;
  if (!bytes.empty()) std::memcpy(&word, bytes.data(), bytes.size());
  return Mix64(hash ^ word);
}

}  // namespace

Result<Bpe> Bpe::Build(const std::array<int32_t, 256>& byte_tokens, std::span<const Merge> merges) {
  Bpe bpe;
  bpe.byte_tokens_ = byte_tokens;
  bpe.rules_.reserve(merges.size());
  bpe.slots_.assign(std::bit_ceil(2 * merges.size() + 1), {kEmpty, kNoRank});
  const size_t mask = bpe.slots_.size() - 1;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    Check(merge.left >= 0 && merge.right >= 0 && merge.result >= 0, "a merge of no token");
    const uint64_t pair = PairOf(merge.left, merge.right);
    size_t at = Mix64(pair) & mask;
    size_t probes = 0;
    while (bpe.slots_[at].pair != kEmpty && bpe.slots_[at].pair != pair) {
      at = (at + 1) & mask;
      if (++probes == kMaxProbes) return Status::Invalid("merges that collide in the hash table");
    }
    bpe.slots_[at] = {pair, static_cast<int32_t>(rank)};
    bpe.rules_.push_back({pair, merge.result});
  }
  return bpe;
}

void Bpe::AddWholePiece(std::string bytes, int32_t token) {
  whole_pieces_.emplace(std::move(bytes), token);
}

int32_t Bpe::Rank(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  size_t at = Mix64(pair) & mask;
  while (slots_[at].pair != pair && slots_[at].pair != kEmpty) at = (at + 1) & mask;
  return slots_[at].pair == pair ? slots_[at].rank : kNoRank;
}

std::optional<uint8_t> BpeEncoder::Append(std::string_view piece, std::vector<int32_t>& out) {
  Check(piece.size() <= kMaxPieceBytes, "a piece too long for BPE");
  bytes_seen_ += piece.size();
  if (cache_.empty() && bytes_seen_ >= kCacheFrom) cache_.resize(kCacheSlots);
  if (cache_.empty() || piece.size() > kCachedBytes || piece.empty()) return Merge(piece, out);

  Cached& cached = cache_[HashBytes(piece) % kCacheSlots];
  if (piece == std::string_view(cached.bytes, cached.num_bytes)) {
    out.insert(out.end(), cached.tokens, cached.tokens + cached.num_tokens);
    return std::nullopt;
  }
  const size_t before = out.size();
  if (const auto missing = Merge(piece, out)) return missing;
  const size_t num_tokens = out.size() - before;
  if (num_tokens <= kCachedTokens) {
    cached.num_bytes = static_cast<uint8_t>(piece.size());
    cached.num_tokens = static_cast<uint8_t>(num_tokens);
    std::copy(piece.begin(), piece.end(), cached.bytes);
    std::copy(out.begin() + static_cast<std::ptrdiff_t>(before), out.end(), cached.tokens);
  }
  return std::nullopt;
}

std::optional<uint8_t> BpeEncoder::Merge(std::string_view piece, std::vector<int32_t>& out) {
  if (!bpe_.whole_pieces_.empty()) {
    if (const auto it = bpe_.whole_pieces_.find(std::string(piece));
        it != bpe_.whole_pieces_.end()) {
      out.push_back(it->second);
      return std::nullopt;
    }
  }
  const auto size = static_cast<uint32_t>(piece.size());
  symbols_.resize(size);
  for (uint32_t i = 0; i < size; ++i) {
    const auto byte = static_cast<uint8_t>(piece[i]);
    const int32_t token = bpe_.byte_tokens_[byte];
    if (token == Bpe::kNoToken) return byte;
    symbols_[i] = {token, i == 0 ? kNone : i - 1, i + 1 == size ? kNone : i + 1};
  }
  heap_.clear();
  run_.clear();
  run_at_ = 0;
  for (uint32_t i = 0; i < size; ++i) AddCandidate(i);
  while (const std::optional<uint64_t> best = TakeBest()) {
    const auto place = static_cast<uint32_t>(*best);
    const Bpe::Rule& rule = bpe_.rules_[*best >> 32];
    // Stale if either symbol has merged since: it spells more now, or is gone.
    const Symbol& left = symbols_[place];
    if (left.token == Bpe::kNoToken || left.next == kNone) continue;
    if (PairOf(left.token, symbols_[left.next].token) != rule.pair) continue;
    JoinWithNext(place, rule.result);
    AddCandidate(left.previous);
    AddCandidate(place);
  }
  for (uint32_t at = size == 0 ? kNone : 0; at != kNone; at = symbols_[at].next) {
    out.push_back(symbols_[at].token);
  }
  return std::nullopt;
}

void BpeEncoder::AddCandidate(uint32_t place) {
  if (place == kNone || symbols_[place].next == kNone) return;
  const Symbol& left = symbols_[place];
  const int32_t rank = bpe_.Rank(PairOf(left.token, symbols_[left.next].token));
  if (rank == kNoRank) return;
  heap_.push_back(static_cast<uint64_t>(rank) << 32 | place);
  std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
}

std::optional<uint64_t> BpeEncoder::TakeBest() {
  if (run_at_ == run_.size()) {
    if (heap_.empty()) return std::nullopt;
    run_.swap(heap_);
    heap_.clear();
    run_at_ = 0;
    // In a run of one character candidates come in order, which makes a heap that is sorted.
    if (!std::is_sorted(run_.begin(), run_.end())) std::sort(run_.begin(), run_.end());
  }
  if (heap_.empty() || run_[run_at_] < heap_.front()) return run_[run_at_++];
  std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
  const uint64_t best = heap_.back();
  heap_.pop_back();
  return best;
}

void BpeEncoder::JoinWithNext(uint32_t place, int32_t result) {
  Symbol& left = symbols_[place];
  Symbol& right = symbols_[left.next];
  left.token = result;
  left.next = right.next;
  right.token = Bpe::kNoToken;
  if (left.next != kNone) symbols_[left.next].previous = place;
}

}  // namespace mm01
