#include "server/api.h"

#include <fmt/core.h>

#include <algorithm>
#include <cctype>

#include "base/json.h"
#include "server/answer.h"
#include "server/body_counts.h"
#include "server/chat_prompt.h"
#include "server/completion_requests.h"
#include "server/fields.h"
#include "server/openapi.h"
#include "server/page.h"

namespace mm01::server {
namespace {

constexpr int kMaxBodyDepth = 64;
constexpr int64_t kMaxDetokenized = 16 << 20;
// The page is text of ours alone: it loads nothing from elsewhere and runs no other script.
constexpr const char* kContentPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src "
    "'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

void Reply(const std::shared_ptr<Exchange>& exchange, HttpResponse response) {
  exchange->Post([exchange, response = std::move(response)]() mutable {
    exchange->Send(std::move(response));
  });
}

void Reply(const std::shared_ptr<Exchange>& exchange, const Json& body) {
  Reply(exchange, HttpResponse{.body = JsonText(body)});
}

void Reply(const std::shared_ptr<Exchange>& exchange, const ApiError& error) {
  Reply(exchange, ErrorResponse(error));
}

Result<Json> ParseBody(Exchange& exchange, const ServedModel& model) {
  const std::string body = exchange.TakeBody();
  MM01_RETURN_IF_ERROR(CheckBodyCounts(body, model.context_tokens));
  return ParseJson(body, "the body", {.max_bytes = body.size(), .max_depth = kMaxBodyDepth});
}

// Bytes of base64; nothing where it is none.
std::string DecodeBase64(std::string_view text) {
  constexpr std::string_view kLetters =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=') break;
    const size_t value = kLetters.find(c);
    if (value == kLetters.npos) return "";
    bits = (bits << 6 | static_cast<uint32_t>(value)) & 0xFFFFFF;
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out += static_cast<char>(bits >> count & 0xFF);
  }
  return out;
}

// The key that a request shows; empty where it shows none.
std::string GivenKey(const HttpRequest& head) {
  const std::string* value = head.Find("authorization");
  if (value == nullptr) return "";
  const size_t blank = value->find(' ');
  if (blank == value->npos) return "";
  const std::string scheme = ToLower(value->substr(0, blank));
  const std::string rest = value->substr(blank + 1);
  if (scheme == "bearer") return rest;
  if (scheme != "basic") return "";
  const std::string pair = DecodeBase64(rest);
  const size_t colon = pair.find(':');
  return colon == pair.npos ? "" : pair.substr(colon + 1);
}

// Not a name that a hostile site could point here.
bool IsLocalHost(const HttpRequest& head) {
  const std::string* host = head.Find("host");
  if (host == nullptr) return true;
  if (host->starts_with('[')) return true;
  const std::string name = ToLower(host->substr(0, host->find(':')));
  return name == "localhost" || name.ends_with(".localhost") ||
         std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isdigit(c) != 0 || c == '.'; });
}

// Paths with a last part of any name match where the route ends in "{id}".
bool Matches(std::string_view route, std::string_view path) {
  const size_t brace = route.find('{');
  if (brace == route.npos) return route == path;
  return path.size() > brace && path.starts_with(route.substr(0, brace));
}

const Api::Route* FindRoute(std::string_view method, std::string_view path, bool* has_path) {
  if (method == "HEAD") method = "GET";
  for (const Api::Route& route : Api::Routes()) {
    if (!Matches(route.path, path)) continue;
    *has_path = true;
    if (route.method == method) return &route;
  }
  return nullptr;
}

Json ModelJson(const ServedModel& model) {
  return {{"id", model.name},
          {"object", "model"},
          {"created", model.created},
          {"owned_by", "mm01"},
          {"max_model_len", model.context_tokens},
          {"has_chat_template", model.chat_template != nullptr},
          {"memory_bytes", model.memory_bytes}};
}

}  // namespace

bool EqualInConstantTime(std::string_view given, std::string_view key) {
  if (key.empty()) return false;
  volatile unsigned char difference = given.size() == key.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    const auto bits = static_cast<unsigned char>(given[i] ^ key[i % key.size()]);
    difference = static_cast<unsigned char>(difference | bits);
  }
  return difference == 0;
}

const std::vector<Api::Route>& Api::Routes() {
  static const std::vector<Route> routes = {
      {"GET", "/health", true, false, &Api::Health},
      {"GET", "/ready", false, false, &Api::Ready},
      {"GET", "/metrics", false, false, &Api::MetricsText},
      {"GET", "/openapi.json", false, true, &Api::OpenApi},
      {"GET", "/v1/models", false, true, &Api::Models},
      {"GET", "/v1/models/{id}", false, true, &Api::Model},
      {"POST", "/v1/chat/completions", false, true, &Api::Chat},
      {"POST", "/v1/completions", false, true, &Api::Completion},
      {"POST", "/tokenize", false, true, &Api::Tokenize},
      {"POST", "/detokenize", false, true, &Api::Detokenize},
      {"GET", "/", false, false, &Api::Page},
      {"GET", "/page.css", false, false, &Api::Page},
      {"GET", "/page.js", false, false, &Api::Page},
      {"GET", "/markdown.js", false, false, &Api::Page},
      {"GET", "/icon.svg", false, false, &Api::Page},
  };
  return routes;
}

Api::Api(ApiOptions options) : options_(std::move(options)) {}

void Api::Serve(infer::Service& service, ServedModel model) {
  auto trie = infer::MakeTokenTrie(*model.tokenizer, model.vocab_size);
  std::string openapi = JsonText(OpenApiDocument(model.context_tokens));
  auto serving = std::make_shared<const Serving>(
      Serving{service, std::move(model), std::move(trie), std::move(openapi)});
  const std::lock_guard lock(mutex_);
  serving_ = std::move(serving);
}

void Api::Stop() {
  is_stopping_ = true;
}

std::shared_ptr<const Serving> Api::serving() const {
  const std::lock_guard lock(mutex_);
  return serving_;
}

bool Api::HasKey(const HttpRequest& head) const {
  if (options_.keys.empty()) return true;
  const std::string given = GivenKey(head);
  bool found = false;
  for (const std::string& key : options_.keys) found |= EqualInConstantTime(given, key);
  return found;
}

bool Api::IsAllowedOrigin(const std::string& origin) const {
  const auto& allowed = options_.cors_origins;
  return std::find(allowed.begin(), allowed.end(), "*") != allowed.end() ||
         std::find(allowed.begin(), allowed.end(), origin) != allowed.end();
}

std::optional<HttpResponse> Api::Preflight(const HttpRequest& head) const {
  const std::string* origin = head.Find("origin");
  const bool is_preflight = head.method == "OPTIONS" && origin != nullptr &&
                            head.Find("access-control-request-method") != nullptr;
  if (!is_preflight || !IsAllowedOrigin(*origin)) return std::nullopt;
  return HttpResponse{.status = 204,
                      .headers = {{"Access-Control-Allow-Methods", "GET, POST"},
                                  {"Access-Control-Allow-Headers", "Authorization, Content-Type"},
                                  {"Access-Control-Max-Age", "600"}}};
}

std::optional<HttpResponse> Api::Screen(const HttpRequest& head) {
  bool has_path = false;
  const Route* route = FindRoute(head.method, head.path, &has_path);
  const bool is_open = route != nullptr && route->is_open;
  if (options_.keys.empty() && !is_open && !IsLocalHost(head)) {
    return ErrorResponse({403,
                          "the Host is a name, wanted an address or localhost, as long as no "
                          "keys are set",
                          "", ""});
  }
  if (auto answer = Preflight(head)) return answer;
  if (!is_open && !HasKey(head)) {
    HttpResponse answer =
        ErrorResponse({401, "the key is missing or wrong, wanted Authorization: Bearer KEY", "",
                       "invalid_api_key"});
    answer.headers.push_back({"WWW-Authenticate", "Bearer, Basic realm=\"mm01\""});
    return answer;
  }
  if (route == nullptr && has_path) {
    return ErrorResponse({405,
                          fmt::format("{} takes another method than {}", head.path.substr(0, 200),
                                      head.method.substr(0, 20)),
                          "", ""});
  }
  if (route == nullptr) {
    return ErrorResponse({404, fmt::format("there is no {}", head.path.substr(0, 200)), "", ""});
  }
  if (route->needs_model && (is_stopping_ || !serving())) {
    return ErrorResponse({503, is_stopping_ ? "the server stops" : "the model is being loaded", "",
                          is_stopping_ ? "server_stopping" : "model_loading"});
  }
  const std::string* type = head.Find("content-type");
  if (head.method == "POST" &&
      (type == nullptr || !ToLower(*type).starts_with("application/json"))) {
    return ErrorResponse({415, "the Content-Type is not application/json", "", ""});
  }
  return std::nullopt;
}

std::vector<Header> Api::CommonHeaders(const HttpRequest& head) {
  std::vector<Header> headers = {{"X-Content-Type-Options", "nosniff"}};
  const std::string* origin = head.Find("origin");
  if (origin != nullptr && IsAllowedOrigin(*origin)) {
    headers.push_back({"Access-Control-Allow-Origin", *origin});
    headers.push_back({"Vary", "Origin"});
  }
  return headers;
}

HttpResponse Api::Error(int status, const std::string& message) {
  return ErrorResponse({status, message, "", ""});
}

void Api::Handle(std::shared_ptr<Exchange> exchange) {
  bool has_path = false;
  const HttpRequest& request = exchange->request();
  const Route* route = FindRoute(request.method, request.path, &has_path);
  Check(route != nullptr, "Screen let a request without a route pass");
  (this->*route->handle)(exchange);
}

void Api::Answered(const HttpRequest& head, int status, double seconds) {
  bool has_path = false;
  const Route* route = FindRoute(head.method, head.path, &has_path);
  metrics_.Count(route == nullptr ? "none" : route->path, status, seconds);
}

void Api::Health(const std::shared_ptr<Exchange>& exchange) {
  Reply(exchange, Json{{"status", is_stopping_ ? "stopping" : serving() ? "ready" : "loading"}});
}

void Api::Ready(const std::shared_ptr<Exchange>& exchange) {
  if (is_stopping_)
    return Reply(exchange, ApiError{503, "the server stops", "", "server_stopping"});
  if (!serving()) {
    return Reply(exchange, ApiError{503, "the model is being loaded", "", "model_loading"});
  }
  Reply(exchange, Json{{"status", "ready"}});
}

void Api::MetricsText(const std::shared_ptr<Exchange>& exchange) {
  std::string text = metrics_.Text();
  if (const auto s = serving()) text += ServiceMetricsText(s->service.stats());
  Reply(exchange, HttpResponse{.content_type = "text/plain; version=0.0.4; charset=utf-8",
                               .body = std::move(text)});
}

void Api::Models(const std::shared_ptr<Exchange>& exchange) {
  Reply(exchange, Json{{"object", "list"}, {"data", Json::array({ModelJson(serving()->model)})}});
}

void Api::Model(const std::shared_ptr<Exchange>& exchange) {
  const auto s = serving();
  const std::string name = exchange->request().path.substr(std::string("/v1/models/").size());
  if (name != s->model.name) {
    return Reply(exchange, ApiError{404,
                                    fmt::format("the model '{}' is not served here, '{}' is",
                                                name.substr(0, 100), s->model.name),
                                    "model", "model_not_found"});
  }
  Reply(exchange, ModelJson(s->model));
}

void Api::Chat(const std::shared_ptr<Exchange>& exchange) {
  const auto s = serving();
  const Result<Json> body = ParseBody(*exchange, s->model);
  if (!body.ok()) return Reply(exchange, ToApiError(body.status()));
  AnswerPlan plan;
  if (auto error = ReadChat(*s, *body, &plan)) return Reply(exchange, *error);
  StartAnswer(s->service, s->model, exchange, std::move(plan));
}

void Api::Completion(const std::shared_ptr<Exchange>& exchange) {
  const auto s = serving();
  const Result<Json> body = ParseBody(*exchange, s->model);
  if (!body.ok()) return Reply(exchange, ToApiError(body.status()));
  AnswerPlan plan;
  if (auto error = ReadCompletion(*s, *body, &plan)) return Reply(exchange, *error);
  StartAnswer(s->service, s->model, exchange, std::move(plan));
}

void Api::Tokenize(const std::shared_ptr<Exchange>& exchange) {
  const auto s = serving();
  const Result<Json> body = ParseBody(*exchange, s->model);
  if (!body.ok()) return Reply(exchange, ToApiError(body.status()));
  Fields fields(*body);
  const Json* messages = fields.Find("messages");
  const Json* prompt = fields.Find("prompt");
  if (fields.ok() && (messages == nullptr) == (prompt == nullptr)) {
    fields.Fail("prompt", "wanted either prompt or messages");
  }
  if (fields.error()) return Reply(exchange, *fields.error());
  ChatPrompt out;
  std::optional<ApiError> error;
  ServedModel model = s->model;
  model.most_prompt_tokens = model.most_prompt_bytes = Tokenizer::kMaxTextBytes;  // count all
  if (messages != nullptr) {
    const Json* tools = fields.Find("tools");
    error = BuildChatPrompt(model, *messages, tools == nullptr ? Json() : *tools, &out);
  } else if (!prompt->is_string() || !prompt->get_ref<const std::string&>().empty()) {
    error = ReadPrompt(model, *prompt, &out.tokens);
  }
  if (error) return Reply(exchange, *error);
  Reply(exchange, Json{{"count", out.tokens.size()},
                       {"max_model_len", s->model.context_tokens},
                       {"tokens", out.tokens},
                       {"borders", out.borders}});
}

void Api::Detokenize(const std::shared_ptr<Exchange>& exchange) {
  const auto s = serving();
  const Result<Json> body = ParseBody(*exchange, s->model);
  if (!body.ok()) return Reply(exchange, ToApiError(body.status()));
  Fields fields(*body);
  const Json* tokens = fields.Find("tokens");
  if (fields.ok() && (tokens == nullptr || !tokens->is_array())) {
    fields.Fail("tokens", "tokens is missing or no list");
  }
  if (fields.error()) return Reply(exchange, *fields.error());
  std::vector<int32_t> ids;
  if (!tokens->empty()) {
    if (auto error = ReadPrompt(s->model, *tokens, &ids)) return Reply(exchange, *error);
  }
  int64_t bytes = 0;
  for (const int32_t id : ids) {
    bytes += static_cast<int64_t>(s->model.tokenizer->Bytes(id).size());
  }
  if (bytes > kMaxDetokenized) {
    return Reply(exchange, ApiError{400,
                                    fmt::format("the text has {} bytes, at most {} are sent", bytes,
                                                kMaxDetokenized),
                                    "tokens", ""});
  }
  Reply(exchange, Json{{"prompt", s->model.tokenizer->Decode(ids)}});
}

void Api::OpenApi(const std::shared_ptr<Exchange>& exchange) {
  Reply(exchange, HttpResponse{.body = serving()->openapi});
}

void Api::Page(const std::shared_ptr<Exchange>& exchange) {
  for (const PageFile& file : PageFiles()) {
    if (file.path != exchange->request().path) continue;
    return Reply(exchange, HttpResponse{.content_type = std::string(file.content_type),
                                        .body = std::string(file.content),
                                        .headers = {{"Content-Security-Policy", kContentPolicy},
                                                    {"Cache-Control", "no-cache"}}});
  }
  Reply(exchange, ApiError{404, "the page has no such file", "", ""});
}

}  // namespace mm01::server
