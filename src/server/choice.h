// One choice of an answer: what the model has written, cut into content and calls of functions.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "infer/service.h"
#include "server/logprobs.h"
#include "server/tool_calls.h"

namespace mm01::server {

class Choice {
 public:
  // `has_tools`: the special token before calls begins one.
  Choice(const Tokenizer& tokenizer, bool has_tools);

  // New text as OpenAI's delta of a chat message: "content", "tool_calls", or neither.
  Json Take(const infer::Wrote& wrote);
  // What is left at the end: a call that was none is content.
  Json TakeRest();

  // All of it.
  const std::string& content() const { return content_; }
  Json Message() const;
  // "stop", "length", "tool_calls".
  const char* FinishReason(infer::Finish finish) const;

  TextLogprobs text_logprobs;
  Json chat_logprobs = Json::array();
  std::optional<infer::Done> done;

 private:
  struct Call {
    std::string id, name, arguments;
  };
  void FindCall(const infer::Wrote& wrote);
  void TakeCalls(std::string_view text, Json* delta);

  std::optional<int32_t> call_token_;
  StreamingDetokenizer detokenizer_;
  size_t decoded_ = 0;             // bytes of text of the tokens before a call
  std::optional<size_t> call_at_;  // where in the text calls begin
  size_t taken_ = 0;               // bytes of text
  std::string content_;
  ToolCallParser parser_;
  std::vector<Call> calls_;
};

// "chatcmpl-" and the like, and 24 random letters.
std::string NewId(std::string_view prefix);

}  // namespace mm01::server
