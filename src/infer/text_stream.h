// The text of tokens as they are written, up to a stop string.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/detokenizer.h"

namespace mm01::infer {

// For one stream and one thread. What goes out is certain: whole UTF-8 in which no stop string can
// begin. Special tokens do not show. The tokenizer must outlive it; without one there is no text.
class TextStream {
 public:
  TextStream(const Tokenizer* tokenizer, std::vector<std::string> stops);

  std::string Push(int32_t token);
  std::string Finish();  // what was held back, unless a stop string came
  bool stopped() const { return stopped_; }

 private:
  std::string Filter(std::string_view text);
  size_t LongestBeginning() const;
  std::string Release(size_t n);

  std::optional<StreamingDetokenizer> detokenizer_;
  std::vector<std::string> stops_;
  std::string held_;  // may still turn out to be a stop string
  bool stopped_ = false;
};

}  // namespace mm01::infer
