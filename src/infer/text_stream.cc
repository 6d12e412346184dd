#include "infer/text_stream.h"

#include <algorithm>
#include <utility>

namespace mm01::infer {

TextStream::TextStream(const Tokenizer* tokenizer, std::vector<std::string> stops)
    : stops_(std::move(stops)) {
  if (tokenizer) detokenizer_.emplace(*tokenizer, true);
}

std::string TextStream::Push(int32_t token) {
  return Filter(detokenizer_ ? detokenizer_->Push(token) : "");
}

std::string TextStream::Finish() {
  if (stopped_) return "";
  const std::string certain = Filter(detokenizer_ ? detokenizer_->Finish() : "");
  return stopped_ ? certain : certain + Release(held_.size());
}

std::string TextStream::Filter(std::string_view text) {
  held_ += text;
  size_t first = std::string::npos;
  for (const std::string& s : stops_) {
    if (!s.empty()) first = std::min(first, held_.find(s));
  }
  stopped_ = first != std::string::npos;
  return Release(stopped_ ? first : held_.size() - LongestBeginning());
}

// The longest end of held_ that begins a stop string.
size_t TextStream::LongestBeginning() const {
  size_t longest = 0;
  for (const std::string& s : stops_) {
    for (size_t n = std::min(s.size(), held_.size()); n > longest; --n) {
      if (held_.compare(held_.size() - n, n, s, 0, n) == 0) longest = n;
    }
  }
  return longest;
}

std::string TextStream::Release(size_t n) {
  // A stop string may begin inside a code point; whole ones only go out.
  while (n > 0 && n < held_.size() && (held_[n] & '\xC0') == '\x80') --n;
  std::string out = held_.substr(0, n);
  held_.erase(0, n);
  return out;
}

}  // namespace mm01::infer
