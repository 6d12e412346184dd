#include "io/chat_template.h"

#include <fmt/core.h>

#include "base/json.h"
#include "io/file.h"
#include "io/jinja/evaluator.h"
#include "io/jinja/parser.h"

namespace mm01 {
namespace jinja {

struct Program {
  std::string where;
  Body body;
  std::vector<std::pair<std::string, std::string>> special_tokens;
};

}  // namespace jinja

namespace {

constexpr char kText01[] =
    "{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{% if content is string %}{% set text = content %}"
    "{% elif content %}{% set text = content[0]['text'] %}"
    "{% else %}{% set text = '' %}{% endif %}"
    "{% if message['role'] == 'system' %}"
    "{{ '<beginning_of_sentence>system ai_setting=assistant\\n' + text"
    " + '<end_of_sentence>\\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '<beginning_of_sentence>user name=user\\n' + text + '<end_of_sentence>\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<beginning_of_sentence>ai name=assistant\\n' }}"
    "{% generation %}{{ text + '<end_of_sentence>\\n' }}{% endgeneration %}"
    "{% elif message['role'] == 'function' or message['role'] == 'tool' %}"
    "{{ '<beginning_of_sentence>system function_response=functions\\n' + '{\"name\": \"'"
    " + message['name'] + '\", \"response\": ' + text + '}' + '<end_of_sentence>\\n' }}"
    "{% else %}{{ raise_exception('the role ' ~ message['role']"
    " ~ ' is none of system, user, assistant, function, tool') }}"
    "{% endif %}{% endfor %}"
    "{% if tools %}{% for function in tools %}"
    "{{ '<beginning_of_sentence>system function_setting=functions\\n' + function | tojson"
    " + '<end_of_sentence>\\n' }}"
    "{% endfor %}{% endif %}"
    "{% if add_generation_prompt %}{{ '<beginning_of_sentence>ai name=assistant\\n' }}"
    "{% endif %}";

constexpr int64_t kMaxConfigBytes = 16u << 20;

// Nothing if there is no such file.
Result<std::optional<std::string>> ReadIfThere(const std::string& path, int64_t max_bytes) {
  Result<std::string> text = ReadFile(path, max_bytes);
  if (text.ok()) return std::optional(std::move(text).value());
  if (text.status().code() == Code::kNotFound) return std::optional<std::string>();
  return text.status();
}

// The text of "chat_template" in a tokenizer_config.json; nothing if there is none.
Result<std::optional<std::string>> TemplateOf(const Json& config, const std::string& where) {
  const auto it = config.find("chat_template");
  if (it == config.end() || it->is_null()) return std::optional<std::string>();
  if (it->is_string()) return std::optional(it->get<std::string>());
  if (!it->is_array()) {
    return Status::Invalid(fmt::format("{}: chat_template is of type {}, wanted a string or a list",
                                       where, it->type_name()));
  }
  for (const Json& entry : *it) {
    if (!entry.is_object() || !entry.contains("name") || !entry.contains("template") ||
        !entry["name"].is_string() || !entry["template"].is_string()) {
      return Status::Invalid(
          fmt::format("{}: an entry of chat_template is not {{name, template}}", where));
    }
    if (entry["name"] == "default") return std::optional(entry["template"].get<std::string>());
  }
  return Status::Invalid(fmt::format("{}: no entry of chat_template is named default", where));
}

// bos_token and its kin: strings, or objects with the string as "content".
void SetSpecialTokens(const Json& config, ChatTemplate& chat_template) {
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                           "cls_token", "mask_token"}) {
    auto it = config.find(name);
    if (it == config.end()) continue;
    const Json& token = it->is_object() && it->contains("content") ? (*it)["content"] : *it;
    if (token.is_string()) chat_template.SetSpecialToken(name, token.get<std::string>());
  }
}

Status CheckRequest(const Json& messages, const Json& tools, const Json& extra) {
  if (!messages.is_array()) {
    return Status::Invalid(
        fmt::format("messages: of type {}, wanted an array", messages.type_name()));
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].is_object()) continue;
    return Status::Invalid(
        fmt::format("messages[{}]: of type {}, wanted an object", i, messages[i].type_name()));
  }
  if (!tools.is_null() && !tools.is_array()) {
    return Status::Invalid(fmt::format("tools: of type {}, wanted an array", tools.type_name()));
  }
  if (!extra.is_null() && !extra.is_object()) {
    return Status::Invalid(
        fmt::format("template variables: of type {}, wanted an object", extra.type_name()));
  }
  for (const char* name : {"messages", "tools", "documents", "add_generation_prompt"}) {
    if (!extra.contains(name)) continue;
    return Status::Invalid(fmt::format("template variables: '{}' cannot be set this way", name));
  }
  return Status::Ok();
}

std::vector<RenderedPiece> Pieces(const jinja::Text& text) {
  std::vector<RenderedPiece> pieces;
  size_t begin = 0;
  for (const jinja::Run& run : text.runs) {
    pieces.push_back({std::string(text.view.substr(begin, run.end - begin)), run.trusted});
    begin = run.end;
  }
  return pieces;
}

}  // namespace

ChatTemplate::ChatTemplate(std::unique_ptr<jinja::Program> program)
    : program_(std::move(program)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::Parse(std::string source, const std::string& where) {
  auto program = std::make_unique<jinja::Program>();
  program->where = where;
  MM01_ASSIGN_OR_RETURN(program->body, jinja::ParseTemplate(source, where));
  return ChatTemplate(std::move(program));
}

const ChatTemplate& ChatTemplate::Text01() {
  static const ChatTemplate text01 = Parse(kText01, "the chat template of MiniMax-Text-01").value();
  return text01;
}

void ChatTemplate::SetSpecialToken(std::string name, std::string text) {
  for (auto& [known, old] : program_->special_tokens) {
    if (known != name) continue;
    old = std::move(text);
    return;
  }
  program_->special_tokens.emplace_back(std::move(name), std::move(text));
}

Result<std::vector<RenderedPiece>> ChatTemplate::Render(const Json& messages, const Json& tools,
                                                        bool add_generation_prompt,
                                                        const Json* extra) const {
  const Json none;
  const Json& variables = extra != nullptr ? *extra : none;
  MM01_RETURN_IF_ERROR(CheckRequest(messages, tools, variables));
  jinja::Runtime rt;
  std::vector<std::pair<std::string_view, jinja::Value>> names;
  MM01_ASSIGN_OR_RETURN(const jinja::Value message_list, rt.FromJson(messages, "messages"));
  MM01_ASSIGN_OR_RETURN(const jinja::Value tool_list, rt.FromJson(tools, "tools"));
  names.emplace_back("messages", message_list);
  names.emplace_back("tools", tool_list);
  names.emplace_back("documents", jinja::Value::None());
  names.emplace_back("add_generation_prompt", jinja::Value::Bool(add_generation_prompt));
  if (variables.is_object()) {
    for (const auto& [name, json] : variables.get_ref<const Json::object_t&>()) {
      MM01_ASSIGN_OR_RETURN(const jinja::Value v, rt.FromJson(json, "template variables"));
      names.emplace_back(name, v);
    }
  }
  // Behind `extra`, which wins where both name a variable.
  for (const auto& [name, text] : program_->special_tokens) {
    names.emplace_back(name, rt.Borrowed(text, true));
  }
  jinja::TextBuilder out(rt.budget);
  jinja::Evaluator evaluator(rt, program_->where);
  MM01_RETURN_IF_ERROR(evaluator.Run(program_->body, names, out));
  MM01_ASSIGN_OR_RETURN(const jinja::Value text, rt.Built(std::move(out)));
  return Pieces(*text.text);
}

Result<std::optional<ChatTemplate>> LoadChatTemplate(const std::string& model_dir) {
  const std::string config_path = model_dir + "/tokenizer_config.json";
  const std::string jinja_path = model_dir + "/chat_template.jinja";
  MM01_ASSIGN_OR_RETURN(const auto config_text, ReadIfThere(config_path, kMaxConfigBytes));
  Json config = Json::object();
  if (config_text) {
    MM01_ASSIGN_OR_RETURN(config, ParseJson(*config_text, config_path));
    if (!config.is_object()) {
      return Status::Invalid(
          fmt::format("{}: of type {}, wanted an object", config_path, config.type_name()));
    }
  }
  std::string where = jinja_path;
  MM01_ASSIGN_OR_RETURN(auto source, ReadIfThere(jinja_path, jinja::kMaxSourceBytes));
  if (!source) {
    where = config_path + ": chat_template";
    MM01_ASSIGN_OR_RETURN(source, TemplateOf(config, config_path));
  }
  if (!source) return std::optional<ChatTemplate>();
  MM01_ASSIGN_OR_RETURN(ChatTemplate chat_template, ChatTemplate::Parse(*source, where));
  SetSpecialTokens(config, chat_template);
  return std::optional<ChatTemplate>(std::move(chat_template));
}

}  // namespace mm01
