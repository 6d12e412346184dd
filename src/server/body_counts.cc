#include "server/body_counts.h"

#include <fmt/core.h>

namespace mm01::server {
namespace {

Status AtMost(int64_t found, int64_t most, const char* what) {
  if (found <= most) return Status::Ok();
  return Status::Invalid(fmt::format("the body has {} {}, wanted at most {}", found, what, most));
}

}  // namespace

Status CheckBodyCounts(std::string_view body, int64_t context_tokens) {
  int64_t lists = 0, texts = 0, commas = 0;
  bool in_text = false;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (c == '"') {
      in_text = !in_text;
      texts += in_text ? 1 : 0;
    } else if (in_text) {
      i += c == '\\' ? 1 : 0;
    } else {
      lists += c == '[' || c == '{' ? 1 : 0;
      commas += c == ',' ? 1 : 0;
    }
  }
  MM01_RETURN_IF_ERROR(AtMost(lists, kMaxBodyLists, "lists and objects"));
  MM01_RETURN_IF_ERROR(AtMost(texts, kMaxBodyTexts, "texts"));
  return AtMost(commas, kMaxBodyEntries + kMaxPromptsOfIds * context_tokens, "entries");
}

}  // namespace mm01::server
