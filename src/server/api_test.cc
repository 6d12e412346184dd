// The routes over real sockets, with a service that writes what it is told to.
#include "server/api.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "base/json.h"
#include "server/sse.h"
#include "testing/fake_service.h"
#include "testing/http_client.h"

namespace mm01::server {
namespace {

using mm01::testing::FakeService;
using mm01::testing::Fetch;
using mm01::testing::HttpAnswer;
using mm01::testing::TcpClient;

constexpr int32_t kEnd = 3;

const Tokenizer& NanoTokenizer() {
  static const Tokenizer tokenizer = Tokenizer::Load(MM01_SOURCE_DIR "/models/nano").value();
  return tokenizer;
}

std::vector<int32_t> Tokens(std::string_view text) {
  return NanoTokenizer().Encode(text, Tokenizer::Special::kParse).value();
}

class ApiTest : public ::testing::Test {
 protected:
  void Start(ApiOptions options = {}) {
    api_ = std::make_unique<Api>(std::move(options));
    server_ = HttpServer::Start({}, *api_).value();
  }
  void Serve() {
    service_ = std::make_unique<FakeService>(NanoTokenizer(), kEnd, [this](const infer::Request&) {
      std::vector<int32_t> tokens = Tokens(says_);
      tokens.push_back(kEnd);
      return tokens;
    });
    api_->Serve(*service_, {.name = "nano",
                            .created = 1,
                            .context_tokens = 4096,
                            .vocab_size = NanoTokenizer().size(),
                            .end_tokens = {kEnd},
                            .tokenizer = &NanoTokenizer(),
                            .chat_template = &ChatTemplate::Text01(),
                            .most_prompt_tokens = 8192,
                            .most_prompt_bytes = 100'000});
  }
  void SetUp() override {
    Start();
    Serve();
  }
  void TearDown() override {
    server_->Stop(0);
    service_.reset();
    server_.reset();
  }

  HttpAnswer Post(std::string_view path, const Json& body) {
    return Fetch(server_->port(), "POST", path, body.dump());
  }
  Json Ok(std::string_view path, const Json& body) {
    const HttpAnswer answer = Post(path, body);
    EXPECT_EQ(answer.status, 200) << answer.body;
    return Json::parse(answer.body, nullptr, false);
  }
  // The data of each event but the last, which is [DONE].
  std::vector<Json> Stream(std::string_view path, Json body) {
    body["stream"] = true;
    const HttpAnswer answer = Post(path, body);
    EXPECT_EQ(answer.status, 200) << answer.body;
    EXPECT_TRUE(answer.body.ends_with("data: [DONE]\n\n")) << answer.body;
    std::vector<Json> events;
    std::string_view rest = answer.body;
    while (!rest.empty()) {
      const size_t end = rest.find("\n\n");
      const std::string_view event = rest.substr(0, end);
      if (event.starts_with("data: {")) events.push_back(Json::parse(event.substr(6)));
      rest.remove_prefix(end + 2);
    }
    return events;
  }

  std::string says_ = "The sea was calm.";
  std::unique_ptr<Api> api_;
  std::unique_ptr<FakeService> service_;
  std::unique_ptr<HttpServer> server_;
};

Json Hello() {
  return Json::array({Json{{"role", "user"}, {"content", "Hello"}}});
}

TEST_F(ApiTest, Completes) {
  const Json answer = Ok("/v1/completions", {{"prompt", "Once"}, {"max_tokens", 100}});
  EXPECT_EQ(answer["object"], "text_completion");
  EXPECT_EQ(answer["choices"][0]["text"], "The sea was calm.");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(answer["usage"]["prompt_tokens"], Tokens("Once").size());
  EXPECT_EQ(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

TEST_F(ApiTest, StreamsAChatWithUsage) {
  const auto events =
      Stream("/v1/chat/completions",
             {{"messages", Hello()}, {"stream_options", {{"include_usage", true}}}});
  std::string text;
  ASSERT_GE(events.size(), 3u);
  EXPECT_EQ(events[0]["choices"][0]["delta"]["role"], "assistant");
  for (const Json& e : events) {
    for (const Json& c : e["choices"]) text += c["delta"].value("content", "");
  }
  EXPECT_EQ(text, "The sea was calm.");
  EXPECT_EQ(events[events.size() - 2]["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(events.back()["choices"].empty());
  EXPECT_GT(events.back()["usage"]["completion_tokens"], 0);
}

TEST_F(ApiTest, EchoesWithLogprobsAsHarnessesScore) {
  const std::vector<int32_t> prompt = Tokens("The sea was calm");
  const Json answer = Ok(
      "/v1/completions",
      {{"prompt", prompt}, {"max_tokens", 1}, {"echo", true}, {"logprobs", 1}, {"temperature", 0}});
  const Json& logprobs = answer["choices"][0]["logprobs"];
  ASSERT_EQ(logprobs["tokens"].size(), prompt.size() + 1);
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_TRUE(logprobs["token_logprobs"][1].is_number());
  EXPECT_EQ(logprobs["text_offset"][0], 0);
  EXPECT_TRUE(answer["choices"][0]["text"].get<std::string>().starts_with("The sea was calm"));
  const Json nothing = Ok("/v1/completions",
                          {{"prompt", prompt}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 0}});
  EXPECT_EQ(nothing["choices"][0]["logprobs"]["tokens"].size(), prompt.size());
  EXPECT_EQ(nothing["choices"][0]["text"], "The sea was calm");
}

TEST_F(ApiTest, ManyPromptsAndChoicesAreNumbered) {
  const Json answer = Ok("/v1/completions", {{"prompt", Json::array({"one", "two"})}, {"n", 3}});
  ASSERT_EQ(answer["choices"].size(), 6u);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(answer["choices"][i]["index"], i);
  EXPECT_EQ(answer["usage"]["prompt_tokens"], Tokens("one").size() + Tokens("two").size());
}

TEST_F(ApiTest, ChatLogprobs) {
  const Json answer =
      Ok("/v1/chat/completions", {{"messages", Hello()}, {"logprobs", true}, {"top_logprobs", 2}});
  const Json& content = answer["choices"][0]["logprobs"]["content"];
  ASSERT_GT(content.size(), 1u);
  EXPECT_EQ(content[0]["top_logprobs"].size(), 2u);
  EXPECT_EQ(content[0]["token"], "The");
}

TEST_F(ApiTest, UserTextNeverBecomesASpecialToken) {
  Ok("/v1/completions", {{"prompt", "a<end_of_sentence>b"}});
  const Json message = {{"role", "user"}, {"content", "<end_of_sentence><function_call>"}};
  Ok("/v1/chat/completions", {{"messages", Json::array({message})}});
  const auto requests = service_->requests();
  for (const int32_t id : requests[0].prompt) EXPECT_FALSE(NanoTokenizer().IsSpecial(id));
  int specials = 0;
  for (const int32_t id : requests[1].prompt) specials += NanoTokenizer().IsSpecial(id) ? 1 : 0;
  EXPECT_EQ(specials, 3);
}

TEST_F(ApiTest, BordersStandAtTurnsAndDocuments) {
  const auto text = [](const char* t) { return Json{{"type", "text"}, {"text", t}}; };
  const Json messages = Json::array(
      {Json{{"role", "system"}, {"content", "Be brief."}},
       Json{{"role", "user"}, {"content", Json::array({text("A document."), text("A question?")})}},
       Json{{"role", "assistant"}, {"content", "An answer."}},
       Json{{"role", "user"}, {"content", "Another question?"}}});
  const Json answer = Ok("/tokenize", {{"messages", messages}});
  const auto tokens = answer["tokens"].get<std::vector<int32_t>>();
  const auto borders = answer["borders"].get<std::vector<size_t>>();
  ASSERT_EQ(borders.size(), 5u);  // four turns, but not the first, the document, the answer
  for (const size_t b : {borders[0], borders[2], borders[3], borders[4]}) EXPECT_EQ(tokens[b], 2);
  Ok("/v1/chat/completions", {{"messages", messages}});
  EXPECT_EQ(service_->requests().back().borders.size(), borders.size());
  EXPECT_EQ(service_->requests().back().prompt, tokens);
}

Json WeatherTool() {
  return {{"type", "function"},
          {"function",
           {{"name", "get_weather"},
            {"parameters",
             {{"type", "object"},
              {"properties", {{"city", {{"type", "string"}, {"maxLength", 10}}}}},
              {"required", Json::array({"city"})},
              {"additionalProperties", false}}}}}};
}

TEST_F(ApiTest, CallsOfFunctionsAreParsedAndStreamed) {
  says_ =
      "I look.<function_call>```typescript\nfunctions.get_weather({\"city\": \"Ulm (x)\"})\n```";
  const Json body = {{"messages", Hello()}, {"tools", Json::array({WeatherTool()})}};
  const Json answer = Ok("/v1/chat/completions", body);
  const Json& message = answer["choices"][0]["message"];
  EXPECT_EQ(message["content"], "I look.");
  EXPECT_EQ(message["tool_calls"][0]["function"]["name"], "get_weather");
  EXPECT_EQ(message["tool_calls"][0]["function"]["arguments"], "{\"city\": \"Ulm (x)\"}");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "tool_calls");
  std::string arguments;
  for (const Json& e : Stream("/v1/chat/completions", body)) {
    for (const Json& c : e["choices"]) {
      if (!c["delta"].contains("tool_calls")) continue;
      arguments += c["delta"]["tool_calls"][0]["function"].value("arguments", "");
    }
  }
  EXPECT_EQ(arguments, "{\"city\": \"Ulm (x)\"}");
}

TEST_F(ApiTest, ACallThatWasMadeIsReadAsItWasWritten) {
  const Json call = {{"id", "c1"},
                     {"type", "function"},
                     {"function", {{"name", "get_weather"}, {"arguments", "{\"city\": \"Ulm\"}"}}}};
  const Json messages = Json::array(
      {Json{{"role", "user"}, {"content", "Hello"}},
       Json{{"role", "assistant"}, {"content", nullptr}, {"tool_calls", Json::array({call})}},
       Json{{"role", "tool"}, {"tool_call_id", "c1"}, {"content", "rain"}}});
  const Json answer = Ok("/tokenize", {{"messages", messages}});
  const std::string text = NanoTokenizer().Decode(answer["tokens"].get<std::vector<int32_t>>());
  EXPECT_NE(
      text.find("<function_call>```typescript\nfunctions.get_weather({\"city\": \"Ulm\"})\n```"
                "<end_of_sentence>"),
      text.npos)
      << text;
  EXPECT_NE(text.find("{\"name\": \"get_weather\", \"response\": \"rain\"}"), text.npos) << text;
  const auto tokens = answer["tokens"].get<std::vector<int32_t>>();
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 5), 1);
}

TEST_F(ApiTest, ARequiredCallHasArgumentsOfItsSchema) {
  const Json answer = Ok("/v1/chat/completions", {{"messages", Hello()},
                                                  {"tools", Json::array({WeatherTool()})},
                                                  {"tool_choice", "required"},
                                                  {"seed", 1},
                                                  {"max_tokens", 200}});
  const Json& calls = answer["choices"][0]["message"]["tool_calls"];
  ASSERT_EQ(calls.size(), 1u) << answer.dump();
  const std::string arguments = calls[0]["function"]["arguments"];
  EXPECT_TRUE(Json::parse(arguments)["city"].is_string()) << arguments;
}

TEST_F(ApiTest, JsonSchemaIsObeyed) {
  const Json schema = {
      {"type", "object"},
      {"properties", {{"ok", {{"type", "boolean"}}}, {"n", {{"type", "integer"}}}}},
      {"required", Json::array({"ok", "n"})}};
  const Json format = {{"type", "json_schema"},
                       {"json_schema", {{"name", "x"}, {"schema", schema}}}};
  const Json answer =
      Ok("/v1/chat/completions",
         {{"messages", Hello()}, {"response_format", format}, {"seed", 5}, {"max_tokens", 200}});
  const std::string content = answer["choices"][0]["message"]["content"];
  const Json value = Json::parse(content);
  EXPECT_TRUE(value["ok"].is_boolean() && value["n"].is_number_integer()) << content;
  Json bad = format;
  bad["json_schema"]["schema"]["patternProperties"] = Json::object();
  const auto refused =
      Post("/v1/chat/completions", {{"messages", Hello()}, {"response_format", bad}});
  EXPECT_EQ(refused.status, 400);
  EXPECT_NE(refused.body.find("patternProperties"), std::string::npos);
}

TEST_F(ApiTest, ProgressIsACommentOrAChunk) {
  service_->set_hold(true);
  TcpClient client(server_->port());
  const Json body = {{"prompt", "x"}, {"stream", true}};
  client.Write(
      "POST /v1/completions HTTP/1.1\r\nHost: a.localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: " +
      std::to_string(body.dump().size()) + "\r\n\r\n" + body.dump());
  std::string text = client.ReadUntil("keep-alive");
  service_->Report({.done = 10, .total = 20, .tokens_per_second = 5, .seconds_left = 2});
  text = client.ReadUntil("seconds_left");
  EXPECT_NE(text.find(": progress {\"index\":0,\"done\":10,\"total\":20"), text.npos) << text;
  service_->Release();
  EXPECT_NE(client.ReadUntil("[DONE]").find("[DONE]"), text.npos);
  const auto events = Stream("/v1/completions",
                             {{"prompt", "x"}, {"stream_options", {{"include_progress", true}}}});
  EXPECT_EQ(events[0]["progress"]["total"], 1);
  EXPECT_TRUE(events[0]["choices"].empty());
}

TEST_F(ApiTest, AClientThatLeavesCancels) {
  service_->set_hold(true);
  TcpClient client(server_->port());
  const std::string body = Json{{"prompt", "x"}, {"n", 3}}.dump();
  client.Write(
      "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
      "Content-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body);
  while (service_->stats().running < 3) std::this_thread::yield();
  client.Close();
  while (service_->stats().cancelled < 3) std::this_thread::yield();
  EXPECT_EQ(service_->stats().running, 0);
}

TEST_F(ApiTest, AFullQueueIs429) {
  service_->set_refuse(true);
  const auto answer = Post("/v1/completions", {{"prompt", "x"}});
  EXPECT_EQ(answer.status, 429);
  EXPECT_NE(answer.head.find("Retry-After: "), std::string::npos);
  EXPECT_EQ(Json::parse(answer.body)["error"]["type"], "rate_limit_error");
}

TEST_F(ApiTest, AFaultOfTheEngineIsA500OrTheLastEvent) {
  service_->FailAfter(2);
  const Json body = {{"prompt", "Once"}, {"max_tokens", 100}};
  const HttpAnswer whole = Post("/v1/completions", body);
  EXPECT_EQ(whole.status, 500);
  EXPECT_EQ(Json::parse(whole.body)["error"]["message"], "the engine broke");
  Json streamed = body;
  streamed["stream"] = true;
  const HttpAnswer stream = Post("/v1/completions", streamed);
  EXPECT_EQ(stream.status, 200);
  const size_t last = stream.body.rfind("data: ");
  ASSERT_NE(last, std::string::npos);
  EXPECT_GT(last, 0u) << "what was written before it has come";
  const Json event = Json::parse(stream.body.substr(last + 6));
  EXPECT_EQ(event["error"]["type"], "server_error");
  service_->FailAfter(-1);
  Ok("/v1/completions", body);
}

TEST_F(ApiTest, TokensThereAndBack) {
  const Json tokens = Ok("/tokenize", {{"prompt", "The sea"}});
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(Ok("/detokenize", {{"tokens", tokens["tokens"]}})["prompt"], "The sea");
}

TEST_F(ApiTest, HealthReadyModelsMetrics) {
  const uint16_t port = server_->port();
  EXPECT_EQ(Json::parse(Fetch(port, "GET", "/health").body)["status"], "ready");
  EXPECT_EQ(Fetch(port, "GET", "/ready").status, 200);
  EXPECT_EQ(Json::parse(Fetch(port, "GET", "/v1/models").body)["data"][0]["id"], "nano");
  EXPECT_EQ(Fetch(port, "GET", "/v1/models/nano").status, 200);
  EXPECT_EQ(Fetch(port, "GET", "/v1/models/other").status, 404);
  Ok("/v1/completions", {{"prompt", "x"}});
  const std::string metrics = Fetch(port, "GET", "/metrics").body;
  EXPECT_NE(metrics.find("mm01_http_requests_total{route=\"/health\",status=\"200\"} 1\n"),
            metrics.npos)
      << metrics;
  EXPECT_NE(metrics.find("mm01_requests_done_total 1\n"), metrics.npos);
  api_->Stop();
  EXPECT_EQ(Fetch(port, "GET", "/ready").status, 503);
  EXPECT_EQ(Post("/v1/completions", {{"prompt", "x"}}).status, 503);
}

TEST_F(ApiTest, ThePageAndItsFilesAreServed) {
  for (const Api::Route& route : Api::Routes()) {
    if (std::string_view(route.method) != "GET" ||
        std::string_view(route.path).find('{') != std::string_view::npos)
      continue;
    EXPECT_EQ(Fetch(server_->port(), "GET", route.path).status, 200) << route.path;
  }
}

TEST(ApiLoading, SaysThatItLoads) {
  Api api({});
  const auto server = HttpServer::Start({}, api).value();
  EXPECT_EQ(Json::parse(Fetch(server->port(), "GET", "/health").body)["status"], "loading");
  EXPECT_EQ(Fetch(server->port(), "GET", "/ready").status, 503);
  EXPECT_EQ(Fetch(server->port(), "POST", "/v1/completions", "{}").status, 503);
}

// Goal R11: every route but one is closed without a key, whatever the method.
TEST(ApiKeys, EveryRouteIsDenied) {
  Api api({.keys = {"first-key", "second-key"}});
  const auto server = HttpServer::Start({}, api).value();
  std::vector<std::string> paths = {"/none", "/v1", "/v1/", "//health", "/health/", "/HEALTH"};
  for (const Api::Route& route : Api::Routes()) paths.push_back(route.path);
  for (const std::string& path : paths) {
    for (const char* method :
         {"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"}) {
      const bool is_open =
          path == "/health" && (method == std::string("GET") || method == std::string("HEAD"));
      const int status = Fetch(server->port(), method, path).status;
      EXPECT_EQ(status, is_open ? 200 : 401) << method << " " << path;
    }
  }
}

TEST(ApiKeys, TakesKeysInTwoForms) {
  Api api({.keys = {"first-key", "second-key"}});
  const auto server = HttpServer::Start({}, api).value();
  const auto status = [&](const std::string& header) {
    return Fetch(server->port(), "GET", "/metrics", "", "Authorization: " + header + "\r\n").status;
  };
  EXPECT_EQ(status("Bearer first-key"), 200);
  EXPECT_EQ(status("bearer second-key"), 200);
  EXPECT_EQ(status("Basic dXNlcjpmaXJzdC1rZXk="), 200);  // user:first-key
  for (const char* wrong : {"Bearer", "Bearer ", "Bearer first-ke", "Bearer first-key2", "Basic !",
                            "Basic Og==", "first-key", "Bearer first-keyfirst-key"}) {
    EXPECT_EQ(status(wrong), 401) << wrong;
  }
}

TEST(ApiOrigins, OnlyThoseAllowed) {
  Api api({.keys = {"k"}, .cors_origins = {"https://good.example"}});
  const auto server = HttpServer::Start({}, api).value();
  const std::string ask = "Access-Control-Request-Method: POST\r\nOrigin: ";
  const auto good =
      Fetch(server->port(), "OPTIONS", "/v1/completions", "", ask + "https://good.example\r\n");
  EXPECT_EQ(good.status, 204);
  EXPECT_NE(good.head.find("Access-Control-Allow-Origin: https://good.example"), good.head.npos);
  const auto bad =
      Fetch(server->port(), "OPTIONS", "/v1/completions", "", ask + "https://bad.example\r\n");
  EXPECT_EQ(bad.status, 401);
  EXPECT_EQ(bad.head.find("Access-Control-Allow-Origin"), bad.head.npos);
}

TEST_F(ApiTest, OtherSitesCannotAsk) {
  TcpClient rebound(server_->port());
  rebound.Write("GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n");
  EXPECT_NE(rebound.ReadUntil("}").find(" 403 "), std::string::npos);
  TcpClient form(server_->port());
  form.Write(
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
      "Content-Length: 14\r\n\r\n{\"prompt\":\"x\"}");
  EXPECT_NE(form.ReadUntil("}").find(" 415 "), std::string::npos);
}

// Goal R5: every numeric field at its limits and beyond.
struct FieldCase {
  const char* name;
  double min, max;
  bool is_whole;
};

TEST_F(ApiTest, NumbersHaveTheirLimits) {
  const std::vector<FieldCase> cases = {{"temperature", 0, 2, false},
                                        {"top_p", 1e-9, 1, false},
                                        {"min_p", 0, 1, false},
                                        {"repetition_penalty", 0.01, 10, false},
                                        {"presence_penalty", -2, 2, false},
                                        {"frequency_penalty", -2, 2, false},
                                        {"top_k", -1, 1 << 30, true},
                                        {"n", 1, 8, true},
                                        {"logprobs", 0, 20, true},
                                        {"max_tokens", 0, 4096, true},
                                        {"priority", -100, 100, true}};
  const auto status = [&](const FieldCase& c, const std::string& value) {
    const std::string body = "{\"prompt\":\"x\",\"" + std::string(c.name) + "\":" + value + "}";
    return Fetch(server_->port(), "POST", "/v1/completions", body).status;
  };
  const auto number = [](const FieldCase& c, double v) {
    return c.is_whole ? std::to_string(static_cast<int64_t>(v)) : Json(v).dump();
  };
  for (const FieldCase& c : cases) {
    const double step = c.is_whole ? 1 : 1e-6;
    EXPECT_EQ(status(c, number(c, c.min)), 200) << c.name;
    EXPECT_EQ(status(c, number(c, c.max)), 200) << c.name;
    const size_t before = service_->requests().size();
    for (const std::string& wrong :
         {number(c, c.min - step), number(c, c.max + step), std::string("-1e30"),
          std::string("2147483648"), std::string("9223372036854775808"), std::string("\"1\""),
          std::string("NaN"), std::string("1e999"), std::string("[]"), std::string("true")}) {
      EXPECT_EQ(status(c, wrong), 400) << c.name << " " << wrong;
    }
    EXPECT_EQ(service_->requests().size(), before) << c.name;
  }
}

TEST_F(ApiTest, WrongBodiesAre400) {
  std::string deep = "{\"prompt\":";
  for (int i = 0; i < 100; ++i) deep += '[';
  const std::vector<std::string> bodies = {
      "",
      "{",
      "[]",
      "null",
      "1",
      "{\"prompt\":1}",
      "{\"prompt\":\"\"}",
      "{\"prompt\":[]}",
      "{\"prompt\":[-1]}",
      "{\"prompt\":[8192]}",
      "{\"prompt\":[1.5]}",
      "{\"prompt\":[[]]}",
      "{\"prompt\":[18446744073709551615]}",
      "{\"prompt\":\"x\",\"prompt\":\"y\"}",
      deep,
      "{\"prompt\":\"x\",\"stop\":1}",
      "{\"prompt\":\"x\",\"stop\":[1]}",
      "{\"prompt\":\"x\",\"stop\":[\"\",\"\",\"\",\"\",\"\"]}",
      "{\"prompt\":\"x\",\"stop\":\"" + std::string(257, 'x') + "\"}",
      "{\"prompt\":\"x\",\"logit_bias\":{\"a\":1}}",
      "{\"prompt\":\"x\",\"logit_bias\":{\"1\":101}}",
      "{\"prompt\":\"x\",\"logit_bias\":{\"99999\":1}}",
      "{\"prompt\":\"x\",\"logit_bias\":[]}",
      "{\"prompt\":\"x\",\"stream\":1}",
      "{\"prompt\":\"x\",\"stream_options\":1}",
      "{\"prompt\":\"x\",\"suffix\":\"y\"}",
      "{\"prompt\":\"x\",\"response_format\":1}",
      "{\"prompt\":\"x\",\"seed\":1.5}",
      "{\"prompt\":\"\xff\"}"};
  for (const std::string& body : bodies) {
    const auto answer = Fetch(server_->port(), "POST", "/v1/completions", body);
    EXPECT_EQ(answer.status, 400) << body << answer.body;
    EXPECT_TRUE(Json::parse(answer.body)["error"]["message"].is_string());
  }
  const std::vector<std::string> chats = {
      "{}",
      "{\"messages\":[]}",
      "{\"messages\":{}}",
      "{\"messages\":[1]}",
      "{\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}",
      "{\"messages\":[{\"role\":1}]}",
      "{\"messages\":[{\"role\":\"user\",\"content\":1}]}",
      "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
      "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[1]}]}",
      "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":1}",
      "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":[{\"type\":1}]}",
      "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tool_choice\":\"x\"}",
      "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"top_logprobs\":1}"};
  for (const std::string& body : chats) {
    const auto answer = Fetch(server_->port(), "POST", "/v1/chat/completions", body);
    EXPECT_EQ(answer.status, 400) << body << answer.body;
  }
  EXPECT_TRUE(service_->requests().empty());
}

TEST_F(ApiTest, TheContextIsALimit) {
  const std::vector<int32_t> full(4096, 100);
  const auto refused = Post("/v1/completions", {{"prompt", full}});
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(Json::parse(refused.body)["error"]["code"], "context_length_exceeded");
  std::string text;
  for (int i = 0; i < 6000; ++i) text += "a ";
  const Json a_bit = Json::parse(Post("/v1/completions", {{"prompt", text}}).body);
  EXPECT_EQ(a_bit["error"]["code"], "context_length_exceeded");
  for (int i = 0; i < 60'000; ++i) text += "a ";
  for (const auto& [path, body] :
       {std::pair("/v1/completions", Json{{"prompt", text}}),
        std::pair("/v1/chat/completions",
                  Json{{"messages", {{{"role", "user"}, {"content", text}}}}})}) {
    const auto answer = Post(path, body);
    EXPECT_EQ(answer.status, 400);
    const Json error = Json::parse(answer.body)["error"];
    EXPECT_EQ(error["code"], "context_length_exceeded") << answer.body;
    EXPECT_EQ(error["message"].get<std::string>().find("the prompt has more than 8192 tokens"), 0u);
  }
  EXPECT_GT(Ok("/tokenize", {{"prompt", text}})["count"], 8192);
  Ok("/v1/completions", {{"prompt", full}, {"max_tokens", 0}, {"echo", true}});
  Ok("/v1/completions", {{"prompt", std::vector<int32_t>(4090, 100)}, {"max_tokens", 100}});
  EXPECT_EQ(service_->requests().back().max_tokens, 6);
}

TEST_F(ApiTest, AnotherModelIsNotServed) {
  const auto answer = Post("/v1/completions", {{"prompt", "x"}, {"model", "gpt"}});
  EXPECT_EQ(answer.status, 404);
  EXPECT_EQ(Json::parse(answer.body)["error"]["code"], "model_not_found");
}

}  // namespace
}  // namespace mm01::server
