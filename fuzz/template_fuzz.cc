// Any bytes as a chat template and its context: an error, or pieces that keep their promises.
//
// The input is a template, a zero byte, and the context as JSON: messages, or an object with
// messages, tools and further variables.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/json.h"
#include "io/chat_template.h"
#include "io/utf8.h"

namespace {

mm01::Json ContextOf(std::string_view text) {
  auto json = mm01::ParseJson(text, "fuzz", {.max_bytes = 1 << 20, .max_depth = 64});
  if (json.ok()) return std::move(json).value();
  return mm01::Json::array({{{"role", "user"}, {"content", "hi <end_of_sentence>"}}});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = std::min(input.find('\0'), input.size());
  auto parsed = mm01::ChatTemplate::Parse(std::string(input.substr(0, cut)), "fuzz");
  if (!parsed.ok()) return 0;
  parsed->SetSpecialToken("bos_token", "<s>");

  mm01::Json context = ContextOf(input.substr(std::min(cut + 1, input.size())));
  mm01::Json tools;
  mm01::Json messages = context;
  if (context.is_object()) {
    messages = context.value("messages", mm01::Json::array());
    tools = context.value("tools", mm01::Json());
    context.erase("messages");
    context.erase("tools");
  } else {
    context = nullptr;
  }
  const auto pieces = parsed->Render(messages, tools, true, &context);
  if (!pieces.ok()) return 0;
  for (size_t i = 0; i < pieces->size(); ++i) {
    const mm01::RenderedPiece& piece = (*pieces)[i];
    mm01::Check(!piece.text.empty(), "a piece is empty");
    mm01::Check(i == 0 || piece.trusted != (*pieces)[i - 1].trusted, "two pieces of one trust");
    mm01::Check(mm01::ValidUtf8Prefix(piece.text) == piece.text.size(), "a piece is not UTF-8");
  }
  return 0;
}
