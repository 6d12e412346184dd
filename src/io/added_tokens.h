// Finds added tokens (end-of-sentence and the like) in text before anything else looks at it.
//
// At each place the longest token that starts there wins, and the search goes on behind it. Tokens
// with "normalized": false are looked for first, the others in what lies between them.
//
// Cost      O(n m) for n bytes of text and tokens that share beginnings of at most m bytes.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace mm01 {

struct AddedToken {
  std::string content;  // not empty
  int32_t id = 0;
  bool special = false;
  bool normalized = false;
};

class AddedTokens {
 public:
  static constexpr size_t kMaxContentBytes = 256;

  AddedTokens() = default;
  // Contents must differ.
  explicit AddedTokens(const std::vector<AddedToken>& tokens);

  // Either a token or a part of the text without one, never empty.
  using Sink = std::function<void(const AddedToken* token, std::string_view text)>;

  // Where `special_as_text`, special tokens are text, the others are still found.
  void Split(std::string_view text, bool special_as_text, const Sink& sink) const;

 private:
  // Tokens in order of content, so that those that share a beginning are neighbours.
  struct Pass {
    std::vector<AddedToken> tokens;
    std::array<bool, 256> starts{};  // the first bytes of all contents
  };

  const AddedToken* Longest(const Pass& pass, std::string_view text) const;
  void SplitBy(size_t pass, std::string_view text, bool special_as_text, const Sink& sink) const;

  std::array<Pass, 2> passes_;
};

}  // namespace mm01
