#include "io/added_tokens.h"

#include <algorithm>

namespace mm01 {

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens) {
  for (const AddedToken& token : tokens) {
    Pass& pass = passes_[token.normalized ? 1 : 0];
    pass.tokens.push_back(token);
    pass.starts[static_cast<uint8_t>(token.content[0])] = true;
  }
  for (Pass& pass : passes_) {
    std::sort(pass.tokens.begin(), pass.tokens.end(),
              [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  }
}

void AddedTokens::Split(std::string_view text, bool special_as_text, const Sink& sink) const {
  SplitBy(0, text, special_as_text, sink);
}

void AddedTokens::SplitBy(size_t pass, std::string_view text, bool special_as_text,
                          const Sink& sink) const {
  if (text.empty()) return;
  if (pass == passes_.size()) {
    sink(nullptr, text);
    return;
  }
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = Longest(passes_[pass], text.substr(at));
    if (token == nullptr) {
      ++at;
      continue;
    }
    const size_t end = at + token->content.size();
    // A special token that counts as text still hides the tokens inside it.
    if (!special_as_text || !token->special) {
      SplitBy(pass + 1, text.substr(done, at - done), special_as_text, sink);
      sink(token, text.substr(at, end - at));
      done = end;
    }
    at = end;
  }
  SplitBy(pass + 1, text.substr(done), special_as_text, sink);
}

const AddedToken* AddedTokens::Longest(const Pass& pass, std::string_view text) const {
  if (!pass.starts[static_cast<uint8_t>(text[0])]) return nullptr;
  const AddedToken* longest = nullptr;
  auto first = pass.tokens.begin(), last = pass.tokens.end();  // those that begin like text[0, i)
  for (size_t i = 0; first != last; ++i) {
    if (first->content.size() == i) {
      longest = &*first;
      if (++first == last) break;
    }
    if (i == text.size()) break;
    const auto byte_of = [i](const AddedToken& token) {
      return static_cast<uint8_t>(token.content[i]);
    };
    const auto byte = static_cast<uint8_t>(text[i]);
    first = std::partition_point(first, last, [&](const auto& t) { return byte_of(t) < byte; });
    last = std::partition_point(first, last, [&](const auto& t) { return byte_of(t) <= byte; });
  }
  return longest;
}

}  // namespace mm01
