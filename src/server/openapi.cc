#include "server/openapi.h"

#include "base/json.h"
#include "server/completion_requests.h"
#include "server/generation_fields.h"

namespace mm01::server {
namespace {

Json Number(double min, double max) {
  return {{"type", Json::array({"number", "null"})}, {"minimum", min}, {"maximum", max}};
}

Json Whole(int64_t min, int64_t max) {
  return {{"type", Json::array({"integer", "null"})}, {"minimum", min}, {"maximum", max}};
}

Json Text(size_t max) {
  return {{"type", "string"}, {"maxLength", max}};
}

Json OptionalBool() {
  return {{"type", Json::array({"boolean", "null"})}};
}

Json List(Json items, size_t max) {
  return {{"type", "array"}, {"items", std::move(items)}, {"maxItems", max}};
}

Json Ref(const char* name) {
  return {{"$ref", std::string("#/components/schemas/") + name}};
}

Json GenerationProperties(int64_t context_tokens) {
  Json stop = {{"anyOf", Json::array({Text(kMaxStopBytes), List(Text(kMaxStopBytes), kMaxStops),
                                      Json{{"type", "null"}}})}};
  return {
      {"model", {{"type", "string"}}},
      {"max_tokens", Whole(0, context_tokens)},
      {"max_completion_tokens", Whole(0, context_tokens)},
      {"temperature", Number(0, 2)},
      {"top_p", Number(1e-9, 1)},
      {"top_k", Whole(-1, 1 << 30)},
      {"min_p", Number(0, 1)},
      {"repetition_penalty", Number(0.01, 10)},
      {"presence_penalty", Number(-2, 2)},
      {"frequency_penalty", Number(-2, 2)},
      {"seed", Whole(INT64_MIN, INT64_MAX)},
      {"n", Whole(1, kMaxChoices)},
      {"stop", std::move(stop)},
      {"logit_bias",
       {{"type", Json::array({"object", "null"})}, {"additionalProperties", Number(-100, 100)}}},
      {"stream", OptionalBool()},
      {"stream_options",
       {{"type", Json::array({"object", "null"})},
        {"properties", {{"include_usage", OptionalBool()}, {"include_progress", OptionalBool()}}}}},
      {"cache_salt", {{"type", Json::array({"string", "null"})}, {"maxLength", 256}}},
      {"priority", Whole(-100, 100)},
      {"response_format", Ref("ResponseFormat")}};
}

Json MessageSchema() {
  const Json part = {
      {"type", "object"},
      {"required", Json::array({"type", "text"})},
      {"properties", {{"type", {{"const", "text"}}}, {"text", {{"type", "string"}}}}}};
  const Json content = {
      {"anyOf", Json::array({Json{{"type", "string"}}, List(part, 8), Json{{"type", "null"}}})}};
  return {{"type", "object"},
          {"required", Json::array({"role"})},
          {"properties",
           {{"role", {{"enum", Json::array({"system", "developer", "user", "assistant", "tool"})}}},
            {"content", content},
            {"name", {{"type", "string"}}},
            {"tool_call_id", {{"type", "string"}}},
            {"tool_calls", List(Ref("ToolCall"), 8)}}}};
}

Json ToolSchemas() {
  return {{"ToolCall",
           {{"type", "object"},
            {"required", Json::array({"id", "type", "function"})},
            {"properties",
             {{"id", {{"type", "string"}}},
              {"type", {{"const", "function"}}},
              {"function",
               {{"type", "object"},
                {"required", Json::array({"name", "arguments"})},
                {"properties",
                 {{"name", {{"type", "string"}}}, {"arguments", {{"type", "string"}}}}}}}}}}},
          {"Tool",
           {{"type", "object"},
            {"required", Json::array({"type", "function"})},
            {"properties",
             {{"type", {{"const", "function"}}},
              {"function",
               {{"type", "object"},
                {"required", Json::array({"name"})},
                {"properties",
                 {{"name", {{"type", "string"}}},
                  {"description", {{"type", "string"}}},
                  {"parameters", {{"type", "object"}}}}}}}}}}},
          {"ResponseFormat",
           {{"type", Json::array({"object", "null"})},
            {"required", Json::array({"type"})},
            {"properties",
             {{"type", {{"enum", Json::array({"text", "json_object", "json_schema"})}}},
              {"json_schema",
               {{"type", "object"},
                {"required", Json::array({"name", "schema"})},
                {"properties",
                 {{"name", {{"type", "string"}}}, {"schema", {{"type", "object"}}}}}}}}}}}};
}

Json Schemas(int64_t context_tokens) {
  Json schemas = ToolSchemas();
  schemas["Message"] = MessageSchema();
  schemas["Error"] = {
      {"type", "object"},
      {"required", Json::array({"error"})},
      {"properties",
       {{"error",
         {{"type", "object"}, {"required", Json::array({"message", "type", "param", "code"})}}}}}};
  Json chat = GenerationProperties(context_tokens);
  chat["messages"] = List(Ref("Message"), 16);
  chat["tools"] = List(Ref("Tool"), 8);
  chat["tool_choice"] = {{"enum", Json::array({"auto", "none", "required"})}};
  chat["logprobs"] = OptionalBool();
  chat["top_logprobs"] = Whole(0, kMaxTopLogprobs);
  schemas["ChatRequest"] = {
      {"type", "object"}, {"required", Json::array({"messages"})}, {"properties", chat}};
  Json completion = GenerationProperties(context_tokens);
  const Json ids = List({{"type", "integer"}, {"minimum", 0}}, 1 << 20);
  completion["prompt"] = {
      {"anyOf", Json::array({Json{{"type", "string"}}, ids, List({{"type", "string"}}, kMaxPrompts),
                             List(ids, kMaxPrompts)})}};
  completion["logprobs"] = Whole(0, kMaxTopLogprobs);
  completion["echo"] = OptionalBool();
  schemas["CompletionRequest"] = {
      {"type", "object"}, {"required", Json::array({"prompt"})}, {"properties", completion}};
  schemas["TokenizeRequest"] = {{"type", "object"},
                                {"properties",
                                 {{"prompt", {{"type", "string"}}},
                                  {"messages", List(Ref("Message"), 16)},
                                  {"tools", List(Ref("Tool"), 8)}}}};
  schemas["DetokenizeRequest"] = {
      {"type", "object"}, {"required", Json::array({"tokens"})}, {"properties", {{"tokens", ids}}}};
  return schemas;
}

Json Responses(const char* content_type) {
  const Json error = {{"description", "An error."},
                      {"content", {{"application/json", {{"schema", Ref("Error")}}}}}};
  return {{"200", {{"description", "Done."}, {"content", {{content_type, Json::object()}}}}},
          {"400", error},
          {"default", error}};
}

Json Get(const char* id, const char* summary, const char* content_type) {
  return {
      {"get", {{"operationId", id}, {"summary", summary}, {"responses", Responses(content_type)}}}};
}

Json Post(const char* id, const char* summary, const char* schema) {
  return {{"post",
           {{"operationId", id},
            {"summary", summary},
            {"requestBody",
             {{"required", true}, {"content", {{"application/json", {{"schema", Ref(schema)}}}}}}},
            {"responses", Responses("application/json")}}}};
}

}  // namespace

Json OpenApiDocument(int64_t context_tokens) {
  Json paths = {
      {"/health", Get("health", "Whether the server runs, and what it does.", "application/json")},
      {"/ready", Get("ready", "200 once the model is loaded.", "application/json")},
      {"/metrics", Get("metrics", "Counters for Prometheus.", "text/plain")},
      {"/v1/models", Get("models", "The model that is served.", "application/json")},
      {"/v1/chat/completions", Post("chat", "Answers a conversation.", "ChatRequest")},
      {"/v1/completions", Post("complete", "Continues a text.", "CompletionRequest")},
      {"/tokenize", Post("tokenize", "Text or a conversation as tokens.", "TokenizeRequest")},
      {"/detokenize", Post("detokenize", "Tokens as text.", "DetokenizeRequest")}};
  Json model = Get("model", "One model.", "application/json");
  model["get"]["parameters"] = Json::array(
      {{{"name", "id"}, {"in", "path"}, {"required", true}, {"schema", {{"type", "string"}}}}});
  paths["/v1/models/{id}"] = std::move(model);
  return {{"openapi", "3.1.0"},
          {"info", {{"title", "mm01"}, {"version", "1"}}},
          {"paths", std::move(paths)},
          {"components",
           {{"schemas", Schemas(context_tokens)},
            {"securitySchemes", {{"key", {{"type", "http"}, {"scheme", "bearer"}}}}}}},
          {"security", Json::array({{{"key", Json::array()}}})}};
}

}  // namespace mm01::server
