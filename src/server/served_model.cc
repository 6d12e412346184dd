#include "server/served_model.h"

namespace mm01::server {

ServedModel ServedModelOf(const infer::Engine& engine, std::string name, int64_t created) {
  ServedModel model{.name = std::move(name),
                    .created = created,
                    .context_tokens = engine.options().context_tokens,
                    .vocab_size = engine.config().vocab_size,
                    .tokenizer = engine.tokenizer(),
                    .chat_template = engine.chat_template(),
                    .memory_bytes = engine.plan().total()};
  for (int64_t id = 0; id < model.vocab_size; ++id) {
    if (engine.IsEnd(static_cast<int32_t>(id))) {
      model.end_tokens.push_back(static_cast<int32_t>(id));
    }
  }
  return model;
}

}  // namespace mm01::server
