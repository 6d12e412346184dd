#include "server/choice.h"

#include <fmt/core.h>

#include <algorithm>
#include <random>

namespace mm01::server {

std::string NewId(std::string_view prefix) {
  std::random_device random;
  return fmt::format("{}{:08x}{:08x}{:08x}", prefix, random(), random(), random());
}

Choice::Choice(const Tokenizer& tokenizer, bool has_tools)
    : text_logprobs(tokenizer), detokenizer_(tokenizer, /*skip_special=*/true) {
  if (has_tools) call_token_ = tokenizer.Find(kFunctionCallToken);
}

void Choice::FindCall(const infer::Wrote& wrote) {
  if (!call_token_ || call_at_) return;
  for (const infer::TokenInfo& info : wrote.tokens) {
    if (info.token == *call_token_) {
      call_at_ = decoded_ + detokenizer_.Finish().size();
      return;
    }
    decoded_ += detokenizer_.Push(info.token).size();
  }
}

Json Choice::Take(const infer::Wrote& wrote) {
  FindCall(wrote);
  std::string_view text = wrote.text;
  Json delta = Json::object();
  const size_t before =
      call_at_ ? std::min(text.size(), *call_at_ - std::min(*call_at_, taken_)) : text.size();
  if (before > 0) delta["content"] = text.substr(0, before);
  content_ += text.substr(0, before);
  taken_ += text.size();
  if (before < text.size()) TakeCalls(text.substr(before), &delta);
  return delta;
}

void Choice::TakeCalls(std::string_view text, Json* delta) {
  for (ToolCallDelta& d : parser_.Push(text)) {
    Json entry = {{"index", d.index}};
    if (!d.name.empty()) {
      calls_.push_back({NewId("call_"), d.name, ""});
      entry["id"] = calls_.back().id;
      entry["type"] = "function";
      entry["function"]["name"] = d.name;
    }
    calls_.back().arguments += d.arguments;
    entry["function"]["arguments"] = d.arguments;
    (*delta)["tool_calls"].push_back(std::move(entry));
  }
}

Json Choice::TakeRest() {
  if (parser_.num_calls() > 0 || parser_.text().empty()) return Json::object();
  content_ += parser_.text();
  return {{"content", parser_.text()}};
}

Json Choice::Message() const {
  Json message = {{"role", "assistant"}, {"content", content_}, {"refusal", nullptr}};
  if (calls_.empty()) return message;
  if (content_.empty()) message["content"] = nullptr;
  for (const Call& call : calls_) {
    message["tool_calls"].push_back(
        {{"id", call.id},
         {"type", "function"},
         {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  return message;
}

const char* Choice::FinishReason(infer::Finish finish) const {
  if (finish == infer::Finish::kLength) return "length";
  return calls_.empty() ? "stop" : "tool_calls";
}

}  // namespace mm01::server
