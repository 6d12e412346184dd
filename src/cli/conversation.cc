#include "cli/conversation.h"

#include <fmt/core.h>

#include <algorithm>
#include <span>
#include <utility>

#include "cli/prompt.h"
#include "io/encode_pieces.h"
#include "io/file.h"

namespace mm01::cli {
namespace {

constexpr int64_t kMaxMessagesBytes = int64_t{1} << 30;

std::string TextOf(std::span<const RenderedPiece> pieces) {
  std::string text;
  for (const RenderedPiece& p : pieces) text += p.text;
  return text;
}

// The pieces without their first `n` bytes.
std::vector<RenderedPiece> Behind(std::vector<RenderedPiece> pieces, size_t n) {
  for (RenderedPiece& p : pieces) {
    const size_t cut = std::min(n, p.text.size());
    p.text.erase(0, cut);
    n -= cut;
  }
  return pieces;
}

Status CheckMessages(const Json& file, const std::string& path) {
  const auto messages = file.is_object() ? file.find("messages") : file.end();
  bool ok = file.is_object() && messages != file.end() && messages->is_array() &&
            file.contains("read_text") && file["read_text"].is_string();
  for (const Json& m : ok ? *messages : Json::array()) {
    ok = ok && m.is_object() && m.contains("role") && m["role"].is_string() &&
         m.contains("content") && m["content"].is_string();
  }
  if (ok) return Status::Ok();
  return Status::Invalid(path +
                         ": no saved conversation, wanted an object with messages and read_text");
}

}  // namespace

bool Conversation::IsEmpty() const {
  return messages_.empty() || (messages_.size() == 1 && messages_[0]["role"] == "system");
}

bool Conversation::WaitsForAnswer() const {
  return !messages_.empty() && messages_.back()["role"] == "user";
}

void Conversation::Clear() {
  const bool has_system = !messages_.empty() && messages_[0]["role"] == "system";
  const Json system = has_system ? Json::array({messages_[0]}) : Json::array();
  messages_ = system;
}

void Conversation::SetSystem(const std::string& text) {
  Json messages = Json::array();
  if (!text.empty()) messages.push_back(Message("system", text));
  for (const Json& m : messages_) {
    if (m["role"] != "system") messages.push_back(m);
  }
  messages_ = std::move(messages);
}

void Conversation::AddUser(const std::string& text) {
  if (WaitsForAnswer()) messages_.erase(messages_.size() - 1);
  messages_.push_back(Message("user", text));
}

bool Conversation::TakeBackAnswer() {
  if (WaitsForAnswer()) return true;
  if (messages_.empty() || messages_.back()["role"] != "assistant") return false;
  messages_.erase(messages_.size() - 1);
  return true;
}

Status Conversation::Prepare() {
  MM01_ASSIGN_OR_RETURN(auto pieces, RenderForAnswer(template_, messages_));
  std::string text = TextOf(pieces);
  const bool goes_on = session_ && text.starts_with(read_text_) &&
                       (text.size() > read_text_.size() || !unread_.empty());
  if (goes_on) pieces = Behind(std::move(pieces), read_text_.size());
  MM01_ASSIGN_OR_RETURN(const auto encoded, EncodePieces(*engine_.tokenizer(), pieces));
  const std::vector<int32_t>& tokens = encoded.ids;
  if (!goes_on) {
    session_.reset();  // before another one opens: the engine has room for one
    MM01_ASSIGN_OR_RETURN(infer::Session session, infer::Session::Open(engine_));
    session_.emplace(std::move(session));
    unread_.clear();
  }
  unread_.insert(unread_.end(), tokens.begin(), tokens.end());
  read_text_ = std::move(text);
  return Status::Ok();
}

ReadingReport Conversation::Read(const Notes& notes) {
  ReadingReport report;
  report.status = Prepare();
  if (!report.status.ok()) return report;
  report = ReadWithProgress(*session_, unread_, notes);
  unread_.erase(unread_.begin(), unread_.begin() + report.num_tokens);
  const bool is_stopped = report.status.code() == Code::kCancelled;
  // Nothing of read_text_ is true after an error.
  if (!report.status.ok() && !is_stopped) session_.reset();
  return report;
}

Result<infer::GenerateResult> Conversation::Answer(infer::GenerateOptions options,
                                                   const infer::OnText& on_text) {
  const int64_t before = session_->length();
  options.max_tokens = std::min(options.max_tokens, engine_.options().context_tokens - before);
  MM01_ASSIGN_OR_RETURN(const auto result, infer::Generate(*session_, options, on_text));
  messages_.push_back(Message("assistant", result.text));
  read_text_ += engine_.tokenizer()->Decode(
      std::span(session_->tokens()).subspan(static_cast<size_t>(before)));
  return result;
}

Status Conversation::Save(const std::string& path) const {
  if (!session_ || session_->length() == 0 || !unread_.empty()) {
    return Status::Invalid("nothing was read to its end yet, so there is nothing to save");
  }
  MM01_RETURN_IF_ERROR(session_->Save(path));
  const Json file = {{"messages", messages_}, {"read_text", read_text_}};
  return WriteFileAtomically(path + ".json", JsonText(file, 1) + "\n");
}

Status Conversation::Load(const std::string& path) {
  const std::string json_path = path + ".json";
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(json_path, kMaxMessagesBytes));
  MM01_ASSIGN_OR_RETURN(
      const Json file,
      ParseJson(text, json_path, {.max_bytes = static_cast<size_t>(kMaxMessagesBytes)}));
  MM01_RETURN_IF_ERROR(CheckMessages(file, json_path));
  session_.reset();
  unread_.clear();
  read_text_.clear();
  MM01_ASSIGN_OR_RETURN(infer::Session session, infer::Session::Load(engine_, path));
  session_.emplace(std::move(session));
  messages_ = file["messages"];
  read_text_ = file["read_text"].get<std::string>();
  return Status::Ok();
}

}  // namespace mm01::cli
