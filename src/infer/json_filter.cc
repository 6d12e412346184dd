#include "infer/json_filter.h"

#include <algorithm>
#include <bitset>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <utility>

#include "base/check.h"
#include "infer/grammar.h"
#include "io/utf8.h"

namespace mm01::infer {

// Tokens as a tree of their bytes, in preorder. The last node is none: it ends the one before.
struct TrieNode {
  uint8_t byte;
  uint16_t depth;  // of the root's children: 1
  int32_t skip;    // the first node behind this one's descendants
  int32_t
      tokens_begin;  // those that end here begin, in Trie::tokens; they end with the next node's
};
struct Trie {
  std::vector<TrieNode> nodes;
  std::vector<int32_t> tokens;
  int32_t max_depth = 0;
};

// A set of tokens.
class TokenSet {
 public:
  explicit TokenSet(int64_t size = 0) : words_(static_cast<size_t>((size + 63) / 64)) {}

  void Add(int32_t token) { words_[static_cast<size_t>(token) / 64] |= 1ull << (token % 64); }
  void Add(const TokenSet& other) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  }
  // What is not in it becomes -infinity.
  void Mask(std::span<float> logits) const {
    constexpr float kOut = -std::numeric_limits<float>::infinity();
    for (size_t begin = 0; begin < logits.size(); begin += 64) {
      const uint64_t word = begin / 64 < words_.size() ? words_[begin / 64] : 0;
      const auto part = logits.subspan(begin, std::min<size_t>(64, logits.size() - begin));
      if (word == 0) {
        std::fill(part.begin(), part.end(), kOut);
      } else if (word != ~0ull) {
        for (size_t i = 0; i < part.size(); ++i) part[i] = (word >> i & 1) != 0 ? part[i] : kOut;
      }
    }
  }

 private:
  std::vector<uint64_t> words_;
};

namespace {

constexpr size_t kLongestToken = 1000;  // bytes; so deep the tree is walked
constexpr size_t kLongestPlain = 32;    // characters

using Word = std::pair<std::string_view, int32_t>;

void Grow(std::span<const Word> words, int32_t depth, Trie* trie) {
  for (size_t i = 0; i < words.size();) {
    const auto at = static_cast<size_t>(depth) - 1;
    const char byte = words[i].first[at];
    size_t end = i;
    while (end < words.size() && words[end].first[at] == byte) ++end;
    const size_t node = trie->nodes.size();
    const auto first = static_cast<int32_t>(trie->tokens.size());
    for (; i < end && words[i].first.size() == static_cast<size_t>(depth); ++i) {
      trie->tokens.push_back(words[i].second);
    }
    trie->nodes.push_back({static_cast<uint8_t>(byte), static_cast<uint16_t>(depth), 0, first});
    trie->max_depth = std::max(trie->max_depth, depth);
    Grow(words.subspan(i, end - i), depth + 1, trie);
    trie->nodes[node].skip = static_cast<int32_t>(trie->nodes.size());
    i = end;
  }
}

Trie MakeTrie(std::vector<Word> words) {
  std::sort(words.begin(), words.end());
  Trie trie;
  Grow(words, 1, &trie);
  trie.nodes.push_back({0, 0, 0, static_cast<int32_t>(trie.tokens.size())});
  return trie;
}

size_t CountCharacters(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// Text that stays inside a string of JSON, whatever stands around it.
bool IsPlain(std::string_view text) {
  return ValidUtf8Prefix(text) == text.size() && std::none_of(text.begin(), text.end(), [](char c) {
           return static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\';
         });
}

}  // namespace

class TokenTrie {
 public:
  explicit TokenTrie(const Tokenizer& t) : tokenizer(t) {}

  const Tokenizer& tokenizer;
  int64_t vocab_size = 0;
  Trie all, not_plain;
  std::vector<TokenSet> plain;  // [n]: of at most n characters, which are plain
};

std::shared_ptr<const TokenTrie> MakeTokenTrie(const Tokenizer& tokenizer, int64_t vocab_size) {
  auto out = std::make_shared<TokenTrie>(tokenizer);
  out->vocab_size = vocab_size;
  out->plain.assign(kLongestPlain + 1, TokenSet(vocab_size));
  std::vector<Word> all, not_plain;
  for (int32_t id = 0; id < std::min(vocab_size, tokenizer.size()); ++id) {
    const std::string& bytes = tokenizer.Bytes(id);
    if (bytes.empty() || bytes.size() > kLongestToken || tokenizer.IsSpecial(id)) continue;
    all.emplace_back(bytes, id);
    const size_t characters = CountCharacters(bytes);
    if (IsPlain(bytes) && characters <= kLongestPlain) {
      out->plain[characters].Add(id);
    } else {
      not_plain.emplace_back(bytes, id);
    }
  }
  for (size_t n = 1; n <= kLongestPlain; ++n) out->plain[n].Add(out->plain[n - 1]);
  out->all = MakeTrie(std::move(all));
  out->not_plain = MakeTrie(std::move(not_plain));
  return out;
}

namespace {

constexpr size_t kMaxMasks = 64;

class GrammarFilter final : public TokenFilter {
 public:
  GrammarFilter(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> trie,
                std::vector<int32_t> lead, std::vector<int32_t> end_tokens)
      : grammar_(std::move(grammar)),
        trie_(std::move(trie)),
        lead_(std::move(lead)),
        end_tokens_(std::move(end_tokens)),
        matcher_(*grammar_),
        state_(matcher_.start()) {
    std::bitset<256> kinds;
    for (int c = 0x20; c < 0x7F; ++c) {
      const uint8_t kind = grammar_->kind(static_cast<uint8_t>(c));
      if (c == '"' || c == '\\' || kinds[kind]) continue;
      kinds.set(kind);
      plain_bytes_.push_back(static_cast<uint8_t>(c));
    }
    Check(!end_tokens_.empty(), "a grammar needs a token to end with");
  }

  void Mask(std::span<float> logits) override {
    if (num_lead_ < lead_.size()) {
      const int32_t next = lead_[num_lead_];
      return Keep(logits, std::span(&next, 1));
    }
    if (!matcher_.HasNext(state_)) return Keep(logits, end_tokens_);
    Allowed().Mask(logits);
  }

  void Accept(int32_t token) override {
    if (num_lead_ < lead_.size()) {
      ++num_lead_;
      return;
    }
    const bool is_end =
        std::find(end_tokens_.begin(), end_tokens_.end(), token) != end_tokens_.end();
    if (is_end) return;
    for (const char c : trie_->tokenizer.Bytes(token)) {
      state_ = matcher_.Next(state_, static_cast<uint8_t>(c));
    }
  }

 private:
  static void Keep(std::span<float> logits, std::span<const int32_t> tokens) {
    std::vector<float> kept;
    for (const int32_t t : tokens) kept.push_back(logits[static_cast<size_t>(t)]);
    std::fill(logits.begin(), logits.end(), -std::numeric_limits<float>::infinity());
    for (size_t i = 0; i < tokens.size(); ++i) {
      // One that something else forbids comes all the same.
      logits[static_cast<size_t>(tokens[i])] = std::max(kept[i], -1e30f);
    }
  }

  // Of the state as it is.
  const TokenSet& Allowed() {
    if (const auto known = masks_.find(state_); known != masks_.end()) return known->second;
    if (matcher_.is_large()) {
      state_ = matcher_.Compact(state_);
      masks_.clear();
    }
    if (masks_.size() == kMaxMasks) masks_.clear();
    TokenSet& allowed = masks_[state_] = TokenSet(trie_->vocab_size);
    if (const auto room = PlainRoom()) {
      allowed.Add(trie_->plain[*room]);
      Walk(trie_->not_plain, &allowed);
    } else {
      Walk(trie_->all, &allowed);
    }
    if (matcher_.CanEnd(state_)) {
      for (const int32_t id : end_tokens_) allowed.Add(id);
    }
    return allowed;
  }

  // How many plain characters may come, up to the longest token's, where it does not matter which:
  // inside a string. Nothing where it does. Bytes that a grammar treats apart are those that begin
  // and end strings, so one character of more than a byte speaks for all of its length.
  std::optional<size_t> PlainRoom() {
    int32_t state = state_;
    for (size_t room = 0; room < kLongestPlain; ++room) {
      const int32_t next = matcher_.Next(state, plain_bytes_[0]);
      for (const uint8_t byte : plain_bytes_) {
        if (matcher_.Next(state, byte) != next) return std::nullopt;
      }
      for (const std::string_view text : {"\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"}) {
        int32_t end = state;
        for (const char c : text) end = matcher_.Next(end, static_cast<uint8_t>(c));
        if (end != next) return std::nullopt;
      }
      if (next == Matcher::kDead) return room;
      if (next == state) break;
      state = next;
    }
    return kLongestPlain;
  }

  void Walk(const Trie& trie, TokenSet* allowed) {
    std::vector<int32_t> states(static_cast<size_t>(trie.max_depth) + 1, state_);
    for (size_t i = 0; i + 1 < trie.nodes.size();) {
      const TrieNode& node = trie.nodes[i];
      const auto depth = static_cast<size_t>(node.depth);
      states[depth] = matcher_.Next(states[depth - 1], node.byte);
      if (states[depth] == Matcher::kDead) {
        i = static_cast<size_t>(node.skip);
        continue;
      }
      for (int32_t t = node.tokens_begin; t < trie.nodes[i + 1].tokens_begin; ++t) {
        allowed->Add(trie.tokens[static_cast<size_t>(t)]);
      }
      ++i;
    }
  }

  std::shared_ptr<const Grammar> grammar_;
  std::shared_ptr<const TokenTrie> trie_;
  std::vector<int32_t> lead_, end_tokens_;
  Matcher matcher_;
  int32_t state_;
  size_t num_lead_ = 0;
  std::vector<uint8_t> plain_bytes_;   // of ASCII, one of each kind
  std::map<int32_t, TokenSet> masks_;  // by state
};

}  // namespace

std::unique_ptr<TokenFilter> MakeGrammarFilter(std::shared_ptr<const Grammar> grammar,
                                               std::shared_ptr<const TokenTrie> trie,
                                               std::vector<int32_t> lead,
                                               std::vector<int32_t> end_tokens) {
  return std::make_unique<GrammarFilter>(std::move(grammar), std::move(trie), std::move(lead),
                                         std::move(end_tokens));
}

bool CanBegin(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  Matcher matcher(*grammar);
  int32_t state = matcher.start();
  for (const char c : text) state = matcher.Next(state, static_cast<uint8_t>(c));
  return state != Matcher::kDead;
}

bool Matches(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  Matcher matcher(*grammar);
  int32_t state = matcher.start();
  for (const char c : text) state = matcher.Next(state, static_cast<uint8_t>(c));
  return matcher.CanEnd(state);
}

}  // namespace mm01::infer
