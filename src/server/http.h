// An HTTP/1.1 server for answers that may take hours: streams, keep-alive, limits.
//
// Threads   I/O threads parse heads and move bytes and must never wait; workers run
// Handler::Handle,
//           where bodies are parsed and text is tokenized. What belongs to one connection runs on
//           its strand, one thing at a time.
// Limits    A client that sends or reads too slowly, or too much, is cut off: HttpLimits.
// Lifetime  Exchanges must be gone before the server is; after Stop they do nothing. Handlers run
//           until Stop returns.
// Errors    What is no HTTP gets 400 and a closed connection; 408, 413, 431 for the limits, 503
//           where too many are connected.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "server/http_head.h"

namespace mm01::server {

struct HttpLimits {
  size_t header_bytes = 16 << 10;
  size_t body_bytes = 2'000'000;
  size_t send_buffer_bytes = 256 << 10;  // above it, Exchange::full()
  size_t connections = 2048;
  // Seconds.
  double head = 10;         // from a request's first byte to the end of its head
  double body = 30;         // without a byte of the body
  double whole_body = 600;  // for all of it
  double send = 30;         // without a byte taken by the client
  double idle = 60;         // between requests
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<Header> headers;
};

// One request and its answer. Begin, Write, End, Send and After are called inside the work of Post
// alone. After the client is gone they do nothing.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const HttpRequest& request() const = 0;
  // The request's body, which it has no more: for a handler that answers long after it read it.
  virtual std::string TakeBody() = 0;

  // Runs `work` on the connection's strand; from any thread.
  virtual void Post(std::function<void()> work) = 0;

  virtual void Send(HttpResponse response) = 0;  // all of the answer
  virtual void Begin(HttpResponse head) = 0;     // or a stream: head.body is its first part,
  virtual void Write(std::string_view part) = 0;
  virtual void End() = 0;

  // Whether more waits to be sent than the send buffer should hold; a caller that can wait does.
  virtual bool full() const = 0;
  virtual void OnRoom(std::function<void()> call) = 0;  // each time full() ends
  // At most once: the client left, or was cut off, before the answer's end.
  virtual void OnGone(std::function<void()> call) = 0;
  // Once, unless After is called again before.
  virtual void After(double seconds, std::function<void()> call) = 0;
};

class Handler {
 public:
  virtual ~Handler() = default;
  // On an I/O thread, before the body is read: an answer here means that it never will be.
  virtual std::optional<HttpResponse> Screen(const HttpRequest& head) = 0;
  virtual std::vector<Header> CommonHeaders(const HttpRequest& head) = 0;  // of every answer to it
  // The answer where HTTP itself is at fault.
  virtual HttpResponse Error(int status, const std::string& message) = 0;
  // On a worker. What it throws becomes Error(500).
  virtual void Handle(std::shared_ptr<Exchange> exchange) = 0;
  // After the last byte, or when the client is gone: status 499.
  virtual void Answered(const HttpRequest& head, int status, double seconds) = 0;
};

struct HttpOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;  // 0: any that is free
  int io_threads = 1;
  int workers = 2;
  HttpLimits limits;
};

class HttpServer {
 public:
  // Listens and serves at once. The handler outlives the server. Errors: Io where the address
  // cannot be used.
  static Result<std::unique_ptr<HttpServer>> Start(const HttpOptions& options, Handler& handler);
  virtual ~HttpServer() = default;  // Stop(0)

  virtual uint16_t port() const = 0;
  virtual int64_t num_connections() const = 0;
  virtual void set_body_bytes(size_t limit) = 0;  // of requests from now on

  // Takes no more connections, closes those without a request, and returns when the others have
  // ended, or after `seconds`, having cut them off.
  virtual void Stop(double seconds) = 0;
};

const char* ReasonPhrase(int status);

}  // namespace mm01::server
