// The routes: who may call them, what they answer. docs/api.md is their reference.
//
// Keys      Where keys are set, every route but GET /health wants one: "Authorization: Bearer KEY",
//           or as the password of HTTP Basic, which a browser asks for. They are compared in a time
//           that says nothing about them. A preflight of an allowed origin needs none.
// Browsers  Bodies must be application/json, which other sites' forms cannot send; without keys
//           the Host must be an address or localhost, which rebound names are not.
// Threads   Handler's; Serve and Stop from any.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "infer/json_filter.h"
#include "infer/service.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/served_model.h"

namespace mm01::server {

struct ApiOptions {
  std::vector<std::string> keys;          // none: everybody who reaches the port
  std::vector<std::string> cors_origins;  // "*" is all
};

// What answers to a request need.
struct Serving {
  infer::Service& service;
  ServedModel model;
  std::shared_ptr<const infer::TokenTrie> trie;
  std::string openapi;  // the document of /openapi.json
};

class Api final : public Handler {
 public:
  explicit Api(ApiOptions options);

  // From now on the model is ready. The service outlives the HTTP server's Stop.
  void Serve(infer::Service& service, ServedModel model);
  void Stop();  // new completions get 503

  std::optional<HttpResponse> Screen(const HttpRequest& head) override;
  std::vector<Header> CommonHeaders(const HttpRequest& head) override;
  HttpResponse Error(int status, const std::string& message) override;
  void Handle(std::shared_ptr<Exchange> exchange) override;
  void Answered(const HttpRequest& head, int status, double seconds) override;

  struct Route {
    const char* method;
    const char* path;
    bool is_open;      // needs no key
    bool needs_model;  // 503 until there is one
    void (Api::*handle)(const std::shared_ptr<Exchange>& exchange);
  };
  static const std::vector<Route>& Routes();

 private:
  bool HasKey(const HttpRequest& head) const;
  bool IsAllowedOrigin(const std::string& origin) const;
  std::optional<HttpResponse> Preflight(const HttpRequest& head) const;
  std::shared_ptr<const Serving> serving() const;

  void Health(const std::shared_ptr<Exchange>& exchange);
  void Ready(const std::shared_ptr<Exchange>& exchange);
  void MetricsText(const std::shared_ptr<Exchange>& exchange);
  void Models(const std::shared_ptr<Exchange>& exchange);
  void Model(const std::shared_ptr<Exchange>& exchange);
  void Chat(const std::shared_ptr<Exchange>& exchange);
  void Completion(const std::shared_ptr<Exchange>& exchange);
  void Tokenize(const std::shared_ptr<Exchange>& exchange);
  void Detokenize(const std::shared_ptr<Exchange>& exchange);
  void OpenApi(const std::shared_ptr<Exchange>& exchange);
  void Page(const std::shared_ptr<Exchange>& exchange);

  ApiOptions options_;
  HttpMetrics metrics_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Serving> serving_;
  std::atomic<bool> is_stopping_{false};
};

bool EqualInConstantTime(std::string_view given, std::string_view key);

}  // namespace mm01::server
