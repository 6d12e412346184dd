// Log-probabilities as OpenAI's two endpoints show them.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/json.h"
#include "infer/service.h"
#include "io/detokenizer.h"
#include "io/tokenizer.h"

namespace mm01::server {

// The text of one token; "bytes:\xe2\x80" where its bytes alone are no UTF-8.
std::string TokenText(const Tokenizer& tokenizer, int32_t id);

// An entry of a chat's "logprobs": {"content": [...]}.
Json ChatLogprob(const Tokenizer& tokenizer, const infer::TokenInfo& info);

// The "logprobs" of a completion: tokens, token_logprobs, top_logprobs, text_offset. For one text,
// whose tokens are added in order.
class TextLogprobs {
 public:
  explicit TextLogprobs(const Tokenizer& tokenizer)
      : tokenizer_(tokenizer), detokenizer_(tokenizer) {}

  void AddFirst(int32_t token);  // of an echoed prompt: nothing stands before it
  void Add(const infer::TokenInfo& info);
  // What was added since the last Take.
  Json Take();

 private:
  void AddToken(int32_t token);

  const Tokenizer& tokenizer_;
  StreamingDetokenizer detokenizer_;
  int64_t offset_ = 0;  // in code points
  Json tokens_ = Json::array(), logprobs_ = Json::array();
  Json tops_ = Json::array(), offsets_ = Json::array();
};

}  // namespace mm01::server
