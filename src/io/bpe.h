// Byte pair encoding of one piece: of all neighbours that a merge joins, the pair of lowest rank
// (the leftmost of equals) is joined, until there is none.
//
// A piece is a linked list of symbols and a heap of candidate pairs by (rank, place), so n bytes
// cost O(n log n) whatever they are. Tokens are named by id; what they spell is the caller's
// concern.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"

namespace mm01 {

// Immutable; any number of threads may encode with one.
class Bpe {
 public:
  static constexpr int32_t kNoToken = -1;

  struct Merge {
    int32_t left, right, result;
  };

  // byte_tokens[b] is the token of the single byte b, or kNoToken. Merges come in order of rank; of
  // a pair named twice the later rank counts. Ids must be >= 0. Error: Invalid where the pairs are
  // chosen to collide in the hash table.
  static Result<Bpe> Build(const std::array<int32_t, 256>& byte_tokens,
                           std::span<const Merge> merges);

  // The token that takes a whole piece, before any merge; see "ignore_merges" in tokenizer.json.
  void AddWholePiece(std::string bytes, int32_t token);

 private:
  friend class BpeEncoder;
  struct Rule {
    uint64_t pair;  // left << 32 | right
    int32_t result;
  };
  struct Slot {
    uint64_t pair;
    int32_t rank;
  };

  // The rank of the pair, or kNoRank.
  int32_t Rank(uint64_t pair) const;

  std::array<int32_t, 256> byte_tokens_{};
  std::vector<Rule> rules_;  // by rank
  std::vector<Slot> slots_;  // open addressing, a power of two of them, at most half full
  std::unordered_map<std::string, int32_t> whole_pieces_;
};

// The scratch of one thread, which remembers short pieces.
class BpeEncoder {
 public:
  explicit BpeEncoder(const Bpe& bpe) : bpe_(bpe) {}

  static constexpr size_t kMaxPieceBytes = size_t{1} << 31;

  // Appends the tokens of `piece`, at most kMaxPieceBytes long. Where it has a byte that no token
  // spells, appends nothing and returns that byte.
  std::optional<uint8_t> Append(std::string_view piece, std::vector<int32_t>& out);

 private:
  static constexpr size_t kCachedBytes = 23;
  static constexpr size_t kCachedTokens = 8;
  struct Cached {
    uint8_t num_bytes = 0, num_tokens = 0;
    char bytes[kCachedBytes];
    int32_t tokens[kCachedTokens];
  };
  struct Symbol {
    int32_t token;
    uint32_t previous, next;  // kNone at the ends
  };
  std::optional<uint8_t> Merge(std::string_view piece, std::vector<int32_t>& out);
  void AddCandidate(uint32_t place);  // for the symbol and its next
  std::optional<uint64_t> TakeBest();
  void JoinWithNext(uint32_t place, int32_t result);

  const Bpe& bpe_;
  size_t bytes_seen_ = 0;
  std::vector<Cached> cache_;  // direct-mapped; filled once the text is long enough to pay for it
  std::vector<Symbol> symbols_;
  // Candidates as rank << 32 | place of the left symbol. The least is on top of heap_ or next in
  // run_, which is sorted: once it is used up, all of the heap becomes the next run, cheaper than
  // pops.
  std::vector<uint64_t> heap_, run_;
  size_t run_at_ = 0;
};

}  // namespace mm01
