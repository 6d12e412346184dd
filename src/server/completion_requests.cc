#include "server/completion_requests.h"

#include <fmt/core.h>

#include <algorithm>
#include <ctime>

#include "base/json.h"
#include "base/priority.h"
#include "infer/json_filter.h"
#include "server/chat_prompt.h"
#include "server/choice.h"
#include "server/fields.h"
#include "server/generation_fields.h"

namespace mm01::server {
namespace {

constexpr int64_t kDefaultCompletionTokens = 16;
constexpr size_t kMaxModelNameBytes = 1024;
constexpr float kNever = -1e9f;  // a bias that no logit outweighs

void CheckModel(Fields& fields, const ServedModel& model) {
  std::string name = model.name;
  fields.Text("model", kMaxModelNameBytes, &name);
  if (name != model.name && fields.ok()) {
    fields.Fail("model", fmt::format("the model '{}' is not served here, '{}' is",
                                     name.substr(0, 100), model.name));
  }
}

// 404 for another model, as OpenAI has it.
std::optional<ApiError> ErrorOf(const Fields& fields) {
  std::optional<ApiError> error = fields.error();
  if (error && error->param == "model" && error->message.starts_with("the model")) {
    error->status = 404;
    error->code = "model_not_found";
  }
  return error;
}

// How many tokens may be written after a prompt, or why none may.
std::optional<ApiError> FindRoom(const ServedModel& model, const GenerationFields& how,
                                 int64_t prompt_tokens, int64_t default_tokens, int64_t* out) {
  const int64_t room = model.context_tokens - prompt_tokens;
  const int64_t wanted = how.max_tokens.value_or(default_tokens);
  if (room < std::min<int64_t>(wanted, 1)) {
    return ApiError{400,
                    fmt::format("the prompt has {} tokens, and the context of {} must hold it and "
                                "the answer",
                                prompt_tokens, model.context_tokens),
                    "", "context_length_exceeded"};
  }
  *out = std::min(wanted, room);
  return std::nullopt;
}

infer::Request MakeRequest(const GenerationFields& how, const std::vector<int32_t>& prompt,
                           int64_t max_tokens, int64_t choice) {
  infer::Request request{.prompt = prompt,
                         .generate = how.generate,
                         .choice = static_cast<uint64_t>(choice),
                         .logit_bias = how.logit_bias,
                         .presence_penalty = how.presence_penalty,
                         .frequency_penalty = how.frequency_penalty,
                         .priority = static_cast<int>(how.priority),
                         .salt = how.salt};
  request.generate.max_tokens = max_tokens;
  return request;
}

void FillPlan(const GenerationFields& how, const char* id_prefix, AnswerPlan* plan) {
  plan->id = NewId(id_prefix);
  plan->created = static_cast<int64_t>(std::time(nullptr));
  plan->stream = how.stream;
  plan->include_usage = how.include_usage;
  plan->include_progress = how.include_progress;
  plan->choices_per_prompt = how.n;
}

// One prompt or several; a list of whole numbers is one.
std::optional<ApiError> ReadPrompts(const ServedModel& model, const Json* prompt,
                                    std::vector<std::vector<int32_t>>* out) {
  if (prompt == nullptr) return WrongField("prompt", "prompt is missing");
  const bool is_many = prompt->is_array() && !prompt->empty() && !prompt->front().is_number();
  if (!is_many) return ReadPrompt(model, *prompt, &out->emplace_back());
  if (prompt->size() > kMaxPrompts) {
    return WrongField("prompt", fmt::format("prompt has {} entries, wanted at most {}",
                                            prompt->size(), kMaxPrompts));
  }
  for (const Json& entry : *prompt) {
    if (auto error = ReadPrompt(model, entry, &out->emplace_back())) return error;
  }
  return std::nullopt;
}

// What the answer must be: nothing, or a grammar and the tokens before it.
struct Constraint {
  std::shared_ptr<const infer::Grammar> grammar;
  std::vector<int32_t> lead;
};

// A schema may take 100 ms, in which others want their next token.
Result<std::shared_ptr<const infer::Grammar>> Compile(
    const std::vector<std::vector<infer::GrammarPart>>& alternatives) {
  Result<std::shared_ptr<const infer::Grammar>> grammar = std::shared_ptr<const infer::Grammar>();
  RunAtLowPriority([&] { grammar = infer::CompileGrammar(alternatives); });
  return grammar;
}

std::optional<ApiError> ReadResponseFormat(const ServedModel& model, const Json* format,
                                           Constraint* out) {
  if (format == nullptr) return std::nullopt;
  const std::string param = "response_format";
  if (!format->is_object() || !format->contains("type") || !(*format)["type"].is_string()) {
    return WrongField(param, "response_format is no object with a type");
  }
  const std::string type = (*format)["type"];
  if (type == "text") return std::nullopt;
  Json schema = {{"type", "object"}};
  if (type == "json_schema") {
    const bool has_schema = format->contains("json_schema") && (*format)["json_schema"].is_object();
    if (!has_schema || !(*format)["json_schema"].contains("schema")) {
      return WrongField(param, "response_format.json_schema.schema is missing");
    }
    schema = (*format)["json_schema"]["schema"];
  } else if (type != "json_object") {
    return WrongField(param,
                      fmt::format("response_format.type is '{}', wanted one of text, json_object, "
                                  "json_schema",
                                  type.substr(0, 100)));
  }
  if (model.end_tokens.empty()) {
    return WrongField(param, "this model has no token that ends a text, which JSON needs");
  }
  auto grammar = Compile({{{.schema = &schema}}});
  if (!grammar.ok()) return WrongField(param, "response_format: " + grammar.status().message());
  out->grammar = std::move(grammar).value();
  return std::nullopt;
}

// Calls one of `functions`, each with arguments of its schema.
std::optional<ApiError> ForceCall(const std::vector<const Json*>& functions, int32_t call_token,
                                  Constraint* out) {
  static const Json any_object = {{"type", "object"}};
  std::vector<std::vector<infer::GrammarPart>> alternatives;
  for (const Json* function : functions) {
    const std::string& name = (*function)["name"].get_ref<const std::string&>();
    const bool has_schema =
        function->contains("parameters") && !(*function)["parameters"].is_null();
    alternatives.push_back({{.text = "```typescript\nfunctions." + name + "("},
                            {.schema = has_schema ? &(*function)["parameters"] : &any_object},
                            {.text = ")\n```"}});
  }
  auto grammar = Compile(alternatives);
  if (!grammar.ok()) return WrongField("tools", "tools: " + grammar.status().message());
  out->grammar = std::move(grammar).value();
  out->lead = {call_token};
  return std::nullopt;
}

// The name that tool_choice asks for: "", or the word itself where it is one.
std::optional<ApiError> ReadToolChoice(const Json* choice, std::string* word, std::string* name) {
  *word = "auto";
  if (choice == nullptr) return std::nullopt;
  if (choice->is_string()) {
    *word = *choice;
    if (*word == "auto" || *word == "none" || *word == "required") return std::nullopt;
  } else if (choice->is_object() && choice->contains("function") &&
             (*choice)["function"].is_object() && (*choice)["function"].contains("name") &&
             (*choice)["function"]["name"].is_string()) {
    *word = "named";
    *name = (*choice)["function"]["name"];
    return std::nullopt;
  }
  return WrongField("tool_choice",
                    "tool_choice is none of auto, none, required and {\"type\": \"function\", "
                    "\"function\": {\"name\": ...}}");
}

// `tools` was found sound by BuildChatPrompt.
std::optional<ApiError> ReadToolUse(const Serving& serving, Fields& fields, GenerationFields* how,
                                    AnswerPlan* plan, Constraint* constraint) {
  std::string word, name;
  if (auto error = ReadToolChoice(fields.Find("tool_choice"), &word, &name)) return error;
  const Json* tools = fields.Find("tools");
  if (tools == nullptr || tools->empty()) return std::nullopt;
  const auto call_token = serving.model.tokenizer->Find(kFunctionCallToken);
  if (!call_token) {
    return WrongField("tools", fmt::format("this model has no token {}", kFunctionCallToken));
  }
  if (word == "none") {
    how->logit_bias.emplace_back(*call_token, kNever);
    return std::nullopt;
  }
  plan->has_tools = true;
  if (constraint->grammar != nullptr) {
    return WrongField("response_format",
                      "response_format and tools are both given, wanted one of them");
  }
  if (word == "auto") return std::nullopt;
  if (serving.model.end_tokens.empty()) {
    return WrongField("tool_choice",
                      "this model has no token that ends a text, which a call needs");
  }
  std::vector<const Json*> functions;
  for (const Json& tool : *tools) {
    const Json& function = tool["function"];
    if (name.empty() || function["name"] == name) functions.push_back(&function);
  }
  if (functions.empty()) {
    return WrongField("tool_choice", fmt::format("tool_choice names '{}', which is no tool of this "
                                                 "request",
                                                 name.substr(0, 100)));
  }
  return ForceCall(functions, *call_token, constraint);
}

void ReadChatLogprobs(Fields& fields, AnswerPlan* plan, int64_t* top) {
  fields.Bool("logprobs", &plan->logprobs);
  const bool has_top = fields.Find("top_logprobs") != nullptr;
  fields.Whole("top_logprobs", 0, kMaxTopLogprobs, top);
  if (has_top && !plan->logprobs) {
    fields.Fail("top_logprobs", "top_logprobs is given without logprobs: true, wanted both");
  }
}

}  // namespace

std::optional<ApiError> ReadPrompt(const ServedModel& model, const Json& prompt,
                                   std::vector<int32_t>* tokens) {
  if (prompt.is_string()) {
    const auto& text = prompt.get_ref<const std::string&>();
    if (text.size() > model.most_prompt_bytes) return PromptTooLong(model);
    auto encoded =
        model.tokenizer->Encode(text, Tokenizer::Special::kAsText, model.most_prompt_tokens);
    if (encoded.status().code() == Code::kTooLarge) return PromptTooLong(model);
    if (!encoded.ok()) return ToApiError(encoded.status());
    *tokens = std::move(encoded).value();
  } else if (prompt.is_array()) {
    for (const Json& id : prompt) {
      const bool is_id =
          id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() < model.vocab_size;
      if (!is_id) {
        return WrongField("prompt",
                          fmt::format("an entry of prompt is {}, wanted a token id from 0 to "
                                      "{}",
                                      JsonText(id).substr(0, 32), model.vocab_size - 1));
      }
      tokens->push_back(id.get<int32_t>());
    }
  } else {
    return WrongField("prompt", fmt::format("prompt is {}, wanted a string or a list of token ids",
                                            TypeName(prompt)));
  }
  if (tokens->empty())
    return WrongField("prompt", "the prompt is empty, wanted at least one token");
  return std::nullopt;
}

std::optional<ApiError> ReadCompletion(const Serving& serving, const Json& body, AnswerPlan* plan) {
  const ServedModel& model = serving.model;
  Fields fields(body);
  CheckModel(fields, model);
  const GenerationFields how = ReadGenerationFields(fields, model);
  int64_t logprobs = -1;
  fields.Whole("logprobs", 0, kMaxTopLogprobs, &logprobs);
  fields.Bool("echo", &plan->echo);
  if (fields.Find("suffix") != nullptr) fields.Fail("suffix", "suffix is not supported");
  if (auto error = ErrorOf(fields)) return error;
  plan->is_chat = false;
  plan->logprobs = logprobs >= 0;
  std::vector<std::vector<int32_t>> prompts;
  if (auto error = ReadPrompts(model, fields.Find("prompt"), &prompts)) return error;
  Constraint constraint;
  if (auto error = ReadResponseFormat(model, fields.Find("response_format"), &constraint))
    return error;
  for (const auto& prompt : prompts) {
    int64_t max_tokens = 0;
    if (auto error = FindRoom(model, how, static_cast<int64_t>(prompt.size()),
                              kDefaultCompletionTokens, &max_tokens)) {
      return error;
    }
    for (int64_t i = 0; i < how.n; ++i) {
      infer::Request request = MakeRequest(how, prompt, max_tokens, i);
      request.top_logprobs = static_cast<int>(logprobs);
      request.prompt_logprobs = plan->echo && plan->logprobs;
      if (constraint.grammar) {
        request.filter =
            infer::MakeGrammarFilter(constraint.grammar, serving.trie, {}, model.end_tokens);
      }
      plan->requests.push_back(std::move(request));
    }
  }
  FillPlan(how, "cmpl-", plan);
  return std::nullopt;
}

std::optional<ApiError> ReadChat(const Serving& serving, const Json& body, AnswerPlan* plan) {
  const ServedModel& model = serving.model;
  Fields fields(body);
  CheckModel(fields, model);
  GenerationFields how = ReadGenerationFields(fields, model);
  int64_t top_logprobs = 0;
  ReadChatLogprobs(fields, plan, &top_logprobs);
  if (fields.Find("messages") == nullptr) fields.Fail("messages", "messages is missing");
  if (auto error = ErrorOf(fields)) return error;
  const Json* tools = fields.Find("tools");
  ChatPrompt prompt;
  if (auto error = BuildChatPrompt(model, *fields.Find("messages"),
                                   tools == nullptr ? Json() : *tools, &prompt)) {
    return error;
  }
  Constraint constraint;
  if (auto error = ReadResponseFormat(model, fields.Find("response_format"), &constraint))
    return error;
  if (auto error = ReadToolUse(serving, fields, &how, plan, &constraint)) return error;
  int64_t max_tokens = 0;
  if (auto error = FindRoom(model, how, static_cast<int64_t>(prompt.tokens.size()),
                            model.context_tokens, &max_tokens)) {
    return error;
  }
  for (int64_t i = 0; i < how.n; ++i) {
    infer::Request request = MakeRequest(how, prompt.tokens, max_tokens, i);
    request.borders = prompt.borders;
    request.top_logprobs = plan->logprobs ? static_cast<int>(top_logprobs) : -1;
    if (constraint.grammar) {
      request.filter = infer::MakeGrammarFilter(constraint.grammar, serving.trie, constraint.lead,
                                                model.end_tokens);
    }
    plan->requests.push_back(std::move(request));
  }
  plan->is_chat = true;
  FillPlan(how, "chatcmpl-", plan);
  return std::nullopt;
}

}  // namespace mm01::server
