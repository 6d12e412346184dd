// What requests need to know of the model that is served.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "infer/service.h"
#include "io/chat_template.h"
#include "io/tokenizer.h"
#include "server/api_error.h"

namespace mm01::server {

struct ServedModel {
  std::string name;
  int64_t created = 0;         // Unix seconds
  int64_t context_tokens = 0;  // of one request: prompt and answer
  int64_t vocab_size = 0;
  std::vector<int32_t> end_tokens;
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // null: the model brought none
  int64_t memory_bytes = 0;                     // planned: weights, state, KV cache, workspace
  // Where encoding of a prompt stops: one with more is refused, and nobody need count it to its
  // end. No text of more bytes has so few tokens.
  size_t most_prompt_tokens = 0, most_prompt_bytes = 0;
};

// Of a service's engine, which outlives it.
ServedModel ServedModelOf(const infer::Engine& engine, std::string name, int64_t created);

// Where a prompt has more tokens than most_prompt_tokens.
ApiError PromptTooLong(const ServedModel& model);

}  // namespace mm01::server
