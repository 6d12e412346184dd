#include "server/served_model.h"

#include <fmt/core.h>

#include <algorithm>

namespace mm01::server {

ServedModel ServedModelOf(const infer::Engine& engine, std::string name, int64_t created) {
  ServedModel model{.name = std::move(name),
                    .created = created,
                    .context_tokens = engine.options().context_tokens,
                    .vocab_size = engine.config().vocab_size,
                    .tokenizer = engine.tokenizer(),
                    .chat_template = engine.chat_template(),
                    .memory_bytes = engine.plan().total(),
                    .most_prompt_tokens = static_cast<size_t>(2 * engine.options().context_tokens)};
  size_t longest = 0;
  for (int64_t id = 0; id < model.vocab_size; ++id) {
    longest = std::max(longest, model.tokenizer->Bytes(static_cast<int32_t>(id)).size());
    if (engine.IsEnd(static_cast<int32_t>(id))) {
      model.end_tokens.push_back(static_cast<int32_t>(id));
    }
  }
  model.most_prompt_bytes = model.most_prompt_tokens * longest;
  return model;
}

ApiError PromptTooLong(const ServedModel& model) {
  return {400,
          fmt::format("the prompt has more than {} tokens, and the context of {} must hold it and "
                      "the answer",
                      model.most_prompt_tokens, model.context_tokens),
          "", "context_length_exceeded"};
}

}  // namespace mm01::server
