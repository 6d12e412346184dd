// A conversation with a model: what was said, and what of it the model has read.
//
// What the model has read is kept as text beside its tokens. If the next rendering begins with that
// text, only the rest is read; else (another system text, a message taken back, an answer whose
// text is not that of its tokens) everything is read anew.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "cli/console.h"
#include "cli/reading.h"
#include "infer/generate.h"
#include "infer/session.h"
#include "io/chat_template.h"

namespace mm01::cli {

class Conversation {
 public:
  // The engine has a tokenizer and outlives the conversation, as does the template.
  Conversation(infer::Engine& engine, const ChatTemplate& chat_template)
      : engine_(engine), template_(chat_template) {}

  const Json& messages() const { return messages_; }
  int64_t num_tokens_read() const { return session_ ? session_->length() : 0; }
  bool IsEmpty() const;         // nobody has said anything yet
  bool WaitsForAnswer() const;  // the last message is the user's

  void Clear();                             // all but the system text
  void SetSystem(const std::string& text);  // none where empty
  // An unanswered message before it is replaced.
  void AddUser(const std::string& text);
  // Takes the last answer back. False where there is none and no message waits for one.
  bool TakeBackAnswer();

  // Reads what the model has not read yet. Needs an InterruptScope; after Ctrl-C, Read goes on
  // where it was stopped as long as nothing else is said.
  ReadingReport Read(const Notes& notes);
  // Writes the answer and remembers it; after Read.
  Result<infer::GenerateResult> Answer(infer::GenerateOptions options,
                                       const infer::OnText& on_text);

  // The session at `path` and the messages beside it, at `path`.json.
  Status Save(const std::string& path) const;
  // On an error the conversation is as it was, or cleared where the file itself was the problem.
  Status Load(const std::string& path);

 private:
  Status Prepare();  // sets unread_ for the messages as they are

  infer::Engine& engine_;
  const ChatTemplate& template_;
  Json messages_ = Json::array();
  std::optional<infer::Session> session_;
  std::string read_text_;        // rendered, of the tokens read and of unread_
  std::vector<int32_t> unread_;  // left over where reading was stopped
};

}  // namespace mm01::cli
