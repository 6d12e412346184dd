#include "infer/json_filter.h"

#include <algorithm>
#include <limits>
#include <map>
#include <span>
#include <utility>

#include "base/check.h"
#include "infer/grammar.h"
#include "io/utf8.h"

namespace mm01::infer {
namespace {

// Tokens as a tree of their bytes, in preorder.
struct TrieNode {
  uint8_t byte;
  int32_t depth;                     // of the root's children: 1
  int32_t skip;                      // the first node behind this one's descendants
  int32_t tokens_begin, tokens_end;  // that end here, in Trie::tokens
};
struct Trie {
  std::vector<TrieNode> nodes;
  std::vector<int32_t> tokens;
  int32_t max_depth = 0;
};

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
    trie->nodes.push_back(
        {static_cast<uint8_t>(byte), depth, 0, first, static_cast<int32_t>(trie->tokens.size())});
    trie->max_depth = std::max(trie->max_depth, depth);
    Grow(words.subspan(i, end - i), depth + 1, trie);
    trie->nodes[node].skip = static_cast<int32_t>(trie->nodes.size());
    i = end;
  }
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
  std::vector<int32_t> plain;
};

std::shared_ptr<const TokenTrie> MakeTokenTrie(const Tokenizer& tokenizer, int64_t vocab_size) {
  constexpr size_t kLongest = 1000;  // so deep the tree is walked
  auto out = std::make_shared<TokenTrie>(tokenizer);
  out->vocab_size = vocab_size;
  std::vector<Word> all, not_plain;
  for (int32_t id = 0; id < std::min(vocab_size, tokenizer.size()); ++id) {
    const std::string& bytes = tokenizer.Bytes(id);
    if (bytes.empty() || bytes.size() > kLongest || tokenizer.IsSpecial(id)) continue;
    all.emplace_back(bytes, id);
    if (IsPlain(bytes)) {
      out->plain.push_back(id);
    } else {
      not_plain.emplace_back(bytes, id);
    }
  }
  std::sort(all.begin(), all.end());
  std::sort(not_plain.begin(), not_plain.end());
  Grow(all, 1, &out->all);
  Grow(not_plain, 1, &out->not_plain);
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
    Check(!end_tokens_.empty(), "a grammar needs a token to end with");
  }

  void Mask(std::span<float> logits) override {
    if (num_lead_ < lead_.size()) {
      const int32_t next = lead_[num_lead_];
      return Keep(logits, std::span(&next, 1));
    }
    if (!matcher_.HasNext(state_)) return Keep(logits, end_tokens_);
    const std::vector<bool>& allowed = Allowed();
    for (size_t i = 0; i < logits.size(); ++i) {
      if (i >= allowed.size() || !allowed[i]) logits[i] = -std::numeric_limits<float>::infinity();
    }
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
    if (!matcher_.is_large()) return;
    state_ = matcher_.Compact(state_);
    masks_.clear();
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
  const std::vector<bool>& Allowed() {
    if (const auto known = masks_.find(state_); known != masks_.end()) return known->second;
    if (masks_.size() == kMaxMasks) masks_.clear();
    std::vector<bool>& allowed = masks_[state_];
    allowed.resize(static_cast<size_t>(trie_->vocab_size));
    if (IsInsideString()) {
      for (const int32_t id : trie_->plain) allowed[static_cast<size_t>(id)] = true;
      Walk(trie_->not_plain, &allowed);
    } else {
      Walk(trie_->all, &allowed);
    }
    if (matcher_.CanEnd(state_)) {
      for (const int32_t id : end_tokens_) allowed[static_cast<size_t>(id)] = true;
    }
    return allowed;
  }

  // Whether any plain text leads back to this state. Bytes that a grammar treats apart are those
  // that begin and end strings, so one character of each length speaks for all.
  bool IsInsideString() {
    for (int c = 0x20; c < 0x7F; ++c) {
      if (c == '"' || c == '\\') continue;
      if (matcher_.Next(state_, static_cast<uint8_t>(c)) != state_) return false;
    }
    for (const std::string_view text : {"\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"}) {
      int32_t state = state_;
      for (const char c : text) state = matcher_.Next(state, static_cast<uint8_t>(c));
      if (state != state_) return false;
    }
    return true;
  }

  void Walk(const Trie& trie, std::vector<bool>* allowed) {
    std::vector<int32_t> states(static_cast<size_t>(trie.max_depth) + 1, state_);
    for (size_t i = 0; i < trie.nodes.size();) {
      const TrieNode& node = trie.nodes[i];
      const auto depth = static_cast<size_t>(node.depth);
      states[depth] = matcher_.Next(states[depth - 1], node.byte);
      if (states[depth] == Matcher::kDead) {
        i = static_cast<size_t>(node.skip);
        continue;
      }
      for (int32_t t = node.tokens_begin; t < node.tokens_end; ++t) {
        (*allowed)[static_cast<size_t>(trie.tokens[static_cast<size_t>(t)])] = true;
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
  std::map<int32_t, std::vector<bool>> masks_;  // by state
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
