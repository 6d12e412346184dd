// Tokens to text, as they come.
//
// A token may end inside a code point; the bytes of one that can still be completed are held back
// (at most 3). What can never become UTF-8 turns into U+FFFD, one for each maximal subpart, so all
// that comes out is valid UTF-8 and does not depend on where tokens end: Push of each id and Finish
// give, put together, the text of Tokenizer::Decode with its broken parts replaced.
#pragma once

#include <cstdint>
#include <string>

#include "io/tokenizer.h"

namespace mm01 {

// For one stream and one thread. The tokenizer must outlive it.
class StreamingDetokenizer {
 public:
  explicit StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // The text that `id` completes. Ids that are no token add nothing.
  std::string Push(int32_t id);

  // What was held back, as U+FFFD; the stream may begin anew.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;  // the beginning of a code point
};

}  // namespace mm01
