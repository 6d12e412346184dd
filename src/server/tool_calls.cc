#include "server/tool_calls.h"

#include <fmt/core.h>

namespace mm01::server {
namespace {

constexpr std::string_view kPrefix = "functions.";

}  // namespace

std::string FormatToolCalls(const std::vector<ToolCall>& calls) {
  std::string text = "```typescript\n";
  for (const ToolCall& call : calls) {
    text += fmt::format("{}{}({})\n", kPrefix, call.name, call.arguments);
  }
  return text + "```";
}

std::vector<ToolCallDelta> ToolCallParser::Push(std::string_view text) {
  std::vector<ToolCallDelta> deltas;
  for (const char c : text) Step(c, &deltas);
  if (index_ < 0) {
    text_ += text;
  } else {
    text_.clear();
  }
  return deltas;
}

void ToolCallParser::Step(char c, std::vector<ToolCallDelta>* deltas) {
  switch (at_) {
    case At::kOutside:
      seen_ += c;
      if (seen_.ends_with(kPrefix)) {
        at_ = At::kName;
        name_.clear();
      }
      if (seen_.size() > kPrefix.size()) seen_.erase(0, seen_.size() - kPrefix.size());
      return;
    case At::kName:
      if (c != '(') {
        name_ += c;
        if (c == '\n' || c == '`') at_ = At::kOutside;  // no call
        return;
      }
      at_ = At::kArguments;
      depth_ = 0;
      in_string_ = escaped_ = false;
      deltas->push_back({++index_, name_, ""});
      return;
    case At::kArguments:
      StepArguments(c, deltas);
  }
}

void ToolCallParser::StepArguments(char c, std::vector<ToolCallDelta>* deltas) {
  if (in_string_) {
    if (escaped_) {
      escaped_ = false;
    } else if (c == '\\') {
      escaped_ = true;
    } else if (c == '"') {
      in_string_ = false;
    }
  } else if (c == '"') {
    in_string_ = true;
  } else if (c == '(' || c == '{' || c == '[') {
    ++depth_;
  } else if (c == ')' && depth_ == 0) {
    at_ = At::kOutside;
    seen_.clear();
    return;
  } else if (c == ')' || c == '}' || c == ']') {
    --depth_;
  }
  if (deltas->empty() || deltas->back().index != index_) deltas->push_back({index_, "", ""});
  deltas->back().arguments += c;
}

}  // namespace mm01::server
