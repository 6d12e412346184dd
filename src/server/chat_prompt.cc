#include "server/chat_prompt.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <random>

#include "base/json.h"
#include "io/encode_pieces.h"
#include "server/fields.h"
#include "server/tool_calls.h"

namespace mm01::server {
namespace {

constexpr size_t kMaxMessages = 100'000;
constexpr size_t kMaxTools = 256;
constexpr size_t kMaxNameBytes = 256;

// Words that stand in a message's text for what text cannot say. They are drawn anew for each
// request, so no user can write them.
struct Marks {
  std::string call;  // the special token before calls
  std::string part;  // the end of a part of a message

  Marks() {
    std::random_device random;
    std::string word;
    for (int i = 0; i < 4; ++i) word += fmt::format("{:08x}", random());
    call = "C" + word;
    part = "P" + word;
  }
};

// Makes a request's messages into those that templates know: contents are strings.
class Messages {
 public:
  explicit Messages(const Marks& marks) : marks_(marks) {}

  const std::optional<ApiError>& error() const { return error_; }
  const Json& plain() const { return plain_; }
  size_t num_bytes() const { return num_bytes_; }  // of all contents

  void Add(const Json& message) {
    const std::string where = fmt::format("messages[{}]", plain_.size());
    if (!message.is_object()) {
      return Fail(where, fmt::format("{} is {}, wanted an object", where, TypeName(message)));
    }
    Fields fields(message, where + ".");
    std::string role, name;
    fields.Text("role", kMaxNameBytes, &role);
    fields.Text("name", kMaxNameBytes, &name);
    if (fields.error()) {
      error_ = fields.error();
      return;
    }
    if (role == "developer") role = "system";
    std::string content = Content(fields.Find("content"), where);
    if (role == "assistant") {
      content += Calls(fields.Find("tool_calls"), where);
    } else if (role == "tool" || role == "function") {
      MakeResult(fields, &name, &content);
    } else if (role != "system" && role != "user") {
      return Fail(where + ".role",
                  fmt::format("{}.role is '{}', wanted one of system, developer, user, assistant, "
                              "tool, function",
                              where, role));
    }
    num_bytes_ += content.size();
    Json& plain = plain_.emplace_back(Json::object());
    plain["role"] = std::move(role);
    plain["content"] = std::move(content);
    if (!name.empty()) plain["name"] = std::move(name);
  }

 private:
  void Fail(const std::string& param, std::string message) {
    if (!error_) error_ = WrongField(param, std::move(message));
  }

  std::string Content(const Json* content, const std::string& where) {
    if (content == nullptr) return "";
    if (content->is_string()) return content->get<std::string>();
    if (!content->is_array()) {
      Fail(where + ".content", fmt::format("{}.content is {}, wanted a string or a list of parts",
                                           where, TypeName(*content)));
      return "";
    }
    std::string text;
    for (const Json& part : *content) {
      const bool is_text = part.is_object() && part.contains("type") && part["type"] == "text" &&
                           part.contains("text") && part["text"].is_string();
      if (!is_text) {
        Fail(where + ".content", where +
                                     ".content has a part that is not {\"type\": \"text\", "
                                     "\"text\": ...}: this server reads text only");
        return "";
      }
      if (!text.empty()) text += "\n\n" + marks_.part;
      text += part["text"].get_ref<const std::string&>();
    }
    return text;
  }

  std::string Calls(const Json* list, const std::string& where) {
    if (list == nullptr || (list->is_array() && list->empty())) return "";
    std::vector<ToolCall> calls;
    const auto wrong = [&] {
      Fail(where + ".tool_calls", where +
                                      ".tool_calls is no list of {\"id\", \"type\": "
                                      "\"function\", \"function\": {\"name\", \"arguments\"}}");
      return "";
    };
    if (!list->is_array()) return wrong();
    for (const Json& call : *list) {
      if (!call.is_object() || !call.contains("function")) return wrong();
      const Json& function = call["function"];
      const bool is_call = function.is_object() && function.contains("name") &&
                           function["name"].is_string() && function.contains("arguments") &&
                           function["arguments"].is_string();
      if (!is_call) return wrong();
      calls.push_back({function["name"], function["arguments"]});
      if (call.contains("id") && call["id"].is_string()) names_[call["id"]] = calls.back().name;
    }
    return marks_.call + FormatToolCalls(calls);
  }

  // The template wants the function's name, and JSON for its result.
  void MakeResult(Fields& fields, std::string* name, std::string* content) {
    std::string id;
    fields.Text("tool_call_id", kMaxNameBytes, &id);
    if (const auto known = names_.find(id); name->empty() && known != names_.end()) {
      *name = known->second;
    }
    if (name->empty()) *name = "function";
    if (!IsJson(*content)) {
      *content = JsonText(*content);
    }
  }

  const Marks& marks_;
  Json plain_ = Json::array();
  size_t num_bytes_ = 0;
  std::map<std::string, std::string> names_;  // of functions, by the id of their call
  std::optional<ApiError> error_;
};

std::optional<ApiError> ReadTools(const Json& tools, Json* functions) {
  if (tools.is_null()) return std::nullopt;
  if (!tools.is_array() || tools.size() > kMaxTools) {
    return WrongField("tools",
                      fmt::format("tools is not a list of at most {} functions", kMaxTools));
  }
  *functions = Json::array();
  for (const Json& tool : tools) {
    const bool is_function = tool.is_object() && tool.contains("type") &&
                             tool["type"] == "function" && tool.contains("function") &&
                             tool["function"].is_object() && tool["function"].contains("name") &&
                             tool["function"]["name"].is_string();
    if (!is_function) {
      return WrongField("tools",
                        "an entry of tools is not {\"type\": \"function\", \"function\": "
                        "{\"name\": ...}}");
    }
    Json function = Json::object();
    for (const char* key : {"name", "description", "parameters"}) {
      if (tool["function"].contains(key)) function[key] = tool["function"][key];
    }
    functions->push_back(std::move(function));
  }
  if (functions->empty()) *functions = nullptr;
  return std::nullopt;
}

// Cuts the rendered text at the marks: into runs that are encoded on their own, of pieces.
std::vector<std::vector<RenderedPiece>> CutAtMarks(std::vector<RenderedPiece> pieces,
                                                   const Marks& marks) {
  std::vector<std::vector<RenderedPiece>> runs(1);
  for (RenderedPiece& piece : pieces) {
    std::string_view text = piece.text;
    while (!text.empty()) {
      const size_t call = text.find(marks.call), part = text.find(marks.part);
      const size_t at = std::min(call, part);
      if (at != 0) runs.back().push_back({std::string(text.substr(0, at)), piece.trusted});
      if (at == text.npos) break;
      text.remove_prefix(at + marks.call.size());
      if (at == call) {
        runs.back().push_back({kFunctionCallToken, true});
      } else {
        runs.emplace_back();
      }
    }
  }
  return runs;
}

}  // namespace

std::optional<ApiError> BuildChatPrompt(const ServedModel& model, const Json& messages,
                                        const Json& tools, ChatPrompt* out) {
  if (model.chat_template == nullptr) {
    return WrongField("", "this model brought no chat template; /v1/completions continues a text");
  }
  if (!messages.is_array() || messages.empty() || messages.size() > kMaxMessages) {
    return WrongField("messages",
                      fmt::format("messages is not a list of 1 to {} messages", kMaxMessages));
  }
  const Marks marks;
  Messages list(marks);
  for (const Json& message : messages) {
    list.Add(message);
    if (list.error()) return list.error();
    if (list.num_bytes() > model.most_prompt_bytes) return PromptTooLong(model);
  }
  Json functions;
  if (auto error = ReadTools(tools, &functions)) return error;
  auto pieces = model.chat_template->Render(list.plain(), functions, true);
  if (!pieces.ok()) return ToApiError(pieces.status());
  if (!functions.is_null()) {
    const auto bare = model.chat_template->Render(list.plain(), nullptr, true);
    const auto is_same = [](const RenderedPiece& a, const RenderedPiece& b) {
      return a.text == b.text;
    };
    if (bare.ok() &&
        std::equal(pieces->begin(), pieces->end(), bare->begin(), bare->end(), is_same)) {
      return WrongField("tools", "this model's chat template has no place for tools");
    }
  }
  for (const auto& run : CutAtMarks(std::move(pieces).value(), marks)) {
    const size_t room =
        model.most_prompt_tokens - std::min(model.most_prompt_tokens, out->tokens.size());
    const auto encoded = EncodePieces(*model.tokenizer, run, room);
    if (encoded.status().code() == Code::kTooLarge) return PromptTooLong(model);
    if (!encoded.ok()) return ToApiError(encoded.status());
    const auto start = static_cast<int64_t>(out->tokens.size());
    if (start > 0) out->borders.push_back(start);
    for (const int64_t turn : encoded->turns) out->borders.push_back(start + turn);
    out->tokens.insert(out->tokens.end(), encoded->ids.begin(), encoded->ids.end());
  }
  const auto end = std::unique(out->borders.begin(), out->borders.end());
  out->borders.erase(end, out->borders.end());
  return std::nullopt;
}

}  // namespace mm01::server
