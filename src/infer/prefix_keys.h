// Names for the beginnings of texts, by content: a chain of SHA-256 over blocks of 64 tokens.
//
//   key 0 = SHA-256(root, tokens 0 .. 63)        key i = SHA-256(key i-1, tokens 64 i .. 64 i + 63)
//
// The root stands for the model and the salt, so equal keys mean the same tokens, read by the same
// model, for the same salt. Tokens are hashed as 4 bytes, lowest first.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "kernels/lightning/lightning.h"

namespace mm01::infer {

inline constexpr int64_t kBlock = kLightningBlock;  // tokens of a key

struct PrefixKey {
  std::array<uint8_t, 32> bytes{};

  std::string ToHex() const;
  friend auto operator<=>(const PrefixKey&, const PrefixKey&) = default;
};

struct PrefixKeyHash {
  size_t operator()(const PrefixKey& key) const {
    size_t value;
    std::memcpy(&value, key.bytes.data(), sizeof value);
    return value;
  }
};

PrefixKey PrefixRoot(std::string_view model, std::string_view salt);

// Appends the keys of the whole blocks of `tokens` that `keys` does not have yet. About 1
// microsecond a block.
void ExtendPrefixKeys(const PrefixKey& root, std::span<const int32_t> tokens,
                      std::vector<PrefixKey>* keys);

// How many blocks two texts have in common, from their keys.
int64_t CommonBlocks(std::span<const PrefixKey> a, std::span<const PrefixKey> b);

// Blocks that recent prompts had: where a new prompt parts from them, a later one may, too.
// Remembers the last `most` to 2 `most` of them, 8 bytes and a hash table's overhead each.
class RecentBlocks {
 public:
  explicit RecentBlocks(size_t most = 1 << 19) : most_(most) {}
  // How many blocks of this prompt an earlier one had; remembers it.
  int64_t CommonWith(std::span<const PrefixKey> keys);

 private:
  size_t most_;
  std::unordered_set<uint64_t> now_, before_;
};

}  // namespace mm01::infer
