#include "server/http.h"

#include <fmt/core.h>

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <utility>

namespace mm01::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using Clock = std::chrono::steady_clock;
using ErrorCode = boost::system::error_code;
using asio::ip::tcp;

constexpr size_t kReadBytes = 16 << 10;
constexpr double kLingerSeconds = 2;

Clock::duration Seconds(double s) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
}

class Connection;

// What the connections share. Outlives them.
struct Shared {
  Handler& handler;
  HttpLimits limits;
  asio::thread_pool workers;
  std::atomic<size_t> body_bytes;
  std::atomic<bool> stopping{false};
  std::mutex mutex;
  std::condition_variable empty;
  std::unordered_set<Connection*> connections;

  Shared(Handler& h, const HttpOptions& o)
      : handler(h),
        limits(o.limits),
        workers(static_cast<size_t>(o.workers)),
        body_bytes(o.limits.body_bytes) {}
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, Shared& shared)
      : shared_(shared),
        socket_(std::move(socket)),
        timer_(socket_.get_executor()),
        send_timer_(socket_.get_executor()),
        after_timer_(socket_.get_executor()) {
    const std::lock_guard lock(shared_.mutex);
    shared_.connections.insert(this);
  }
  ~Connection() {
    const std::lock_guard lock(shared_.mutex);
    shared_.connections.erase(this);
    if (shared_.connections.empty()) shared_.empty.notify_all();
  }

  template <typename Work>
  void Post(Work work) {
    asio::post(socket_.get_executor(),
               [self = shared_from_this(), work = std::move(work)]() mutable { work(); });
  }

  void Start(bool is_too_many) {
    ErrorCode ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    socket_.set_option(asio::socket_base::keep_alive(true), ignored);
    // The system would hold megabytes for a client that does not read.
    const auto buffer = static_cast<int>(shared_.limits.send_buffer_bytes);
    socket_.set_option(asio::socket_base::send_buffer_size(buffer), ignored);
    if (is_too_many) return Refuse(503, "too many connections");
    NextRequest();
  }
  // Closed at once where no request runs, else after its answer.
  void CloseWhenIdle() {
    if (state_ == State::kIdle || state_ == State::kHead) Close();
  }
  void Close() {
    if (state_ == State::kClosed) return;
    const bool was_working = state_ == State::kWorking;
    state_ = State::kClosed;
    ErrorCode ignored;
    socket_.close(ignored);
    timer_.cancel();
    send_timer_.cancel();
    after_timer_.cancel();
    if (was_working) Gone();
  }

  // Of the answer: on the strand.
  uint64_t serial() const { return serial_; }
  bool IsAnswering(uint64_t serial) const {
    return state_ == State::kWorking && serial_ == serial && !answer_ended_;
  }
  bool full() const {
    return out_.size() + sending_.size() - sent_ > shared_.limits.send_buffer_bytes;
  }
  void Begin(HttpResponse head, bool is_stream);
  void Write(std::string_view part);
  void End();
  void After(double seconds, std::function<void()> call);

  std::function<void()> on_room, on_gone;

 private:
  enum class State { kIdle, kHead, kBody, kWorking, kLinger, kClosed };

  void NextRequest();
  void Read();
  void OnRead(ErrorCode error, size_t n);
  void Parse();
  void ParseRequestHead();
  void ParseBody();
  void Dispatch();
  void Refuse(int status, const std::string& message);
  void Respond(HttpResponse response);
  void FlushOut();
  void OnSent(ErrorCode error, size_t n);
  void Finish();
  void Linger();
  void Gone();
  void SetDeadline(double seconds);
  void OnDeadline();

  Shared& shared_;
  tcp::socket socket_;
  asio::steady_timer timer_, send_timer_, after_timer_;
  State state_ = State::kIdle;

  std::string in_;  // read and not parsed
  std::array<char, kReadBytes> chunk_;
  bool reading_ = false;
  std::optional<http::request_parser<http::string_body>> parser_;
  HttpRequest request_;
  std::vector<Header> common_headers_;
  Clock::time_point body_deadline_, started_;
  uint64_t serial_ = 0;  // of the request on this connection

  std::string out_, sending_;
  size_t sent_ = 0;
  bool is_sending_ = false, was_full_ = false;
  bool answer_ended_ = false, is_chunked_ = false, keep_alive_ = true, has_head_ = false;
  int status_ = 0;
  std::function<void()> after_;
};

// The view of one request that handlers hold. Calls about an answer that is over do nothing.
class ExchangeImpl final : public Exchange {
 public:
  ExchangeImpl(std::shared_ptr<Connection> connection, HttpRequest request)
      : connection_(std::move(connection)),
        request_(std::move(request)),
        serial_(connection_->serial()) {}

  const HttpRequest& request() const override { return request_; }
  std::string TakeBody() override { return std::exchange(request_.body, {}); }
  void Post(std::function<void()> work) override { connection_->Post(std::move(work)); }
  void Send(HttpResponse response) override {
    if (IsOpen()) connection_->Begin(std::move(response), false);
  }
  void Begin(HttpResponse head) override {
    if (IsOpen()) connection_->Begin(std::move(head), true);
  }
  void Write(std::string_view part) override {
    if (IsOpen()) connection_->Write(part);
  }
  void End() override {
    if (IsOpen()) connection_->End();
  }
  bool full() const override { return connection_->full(); }
  void OnRoom(std::function<void()> call) override {
    if (IsOpen()) connection_->on_room = std::move(call);
  }
  void OnGone(std::function<void()> call) override {
    if (IsOpen()) {
      connection_->on_gone = std::move(call);
    } else {
      call();
    }
  }
  void After(double seconds, std::function<void()> call) override {
    if (IsOpen()) connection_->After(seconds, std::move(call));
  }

 private:
  bool IsOpen() const { return connection_->IsAnswering(serial_); }

  std::shared_ptr<Connection> connection_;
  HttpRequest request_;
  uint64_t serial_;
};

void Connection::SetDeadline(double seconds) {
  timer_.expires_after(Seconds(seconds));
  timer_.async_wait([self = shared_from_this()](ErrorCode error) {
    if (!error && Clock::now() >= self->timer_.expiry()) self->OnDeadline();
  });
}

void Connection::OnDeadline() {
  if (state_ == State::kHead || state_ == State::kBody) {
    Refuse(408, "the request did not come in time");
  } else if (state_ != State::kWorking) {
    Close();
  }
}

void Connection::NextRequest() {
  parser_.reset();
  has_head_ = false;
  if (shared_.stopping) return Close();
  state_ = State::kIdle;
  SetDeadline(shared_.limits.idle);
  if (!in_.empty()) return Parse();
  Read();
}

// A read is always under way, so that a client that leaves is noticed; while an answer is made, at
// most one chunk of what comes after the request is taken in.
void Connection::Read() {
  if (reading_ || state_ == State::kClosed) return;
  if (state_ == State::kWorking && in_.size() >= kReadBytes) return;
  reading_ = true;
  socket_.async_read_some(asio::buffer(chunk_),
                          [self = shared_from_this()](ErrorCode error, size_t n) {
                            self->reading_ = false;
                            self->OnRead(error, n);
                          });
}

void Connection::OnRead(ErrorCode error, size_t n) {
  if (state_ == State::kClosed) return;
  if (error) return Close();
  if (state_ == State::kLinger) return Read();
  in_.append(chunk_.data(), n);
  if (state_ != State::kWorking) return Parse();
  Read();
}

void Connection::Parse() {
  if (state_ == State::kIdle) {
    state_ = State::kHead;
    SetDeadline(shared_.limits.head);
  }
  if (state_ == State::kHead) ParseRequestHead();
  if (state_ == State::kBody) ParseBody();
}

void Connection::ParseRequestHead() {
  const size_t end = in_.find("\r\n\r\n");
  const size_t limit = shared_.limits.header_bytes;
  if ((end == in_.npos ? in_.size() : end + 4) > limit) {
    return Refuse(431, fmt::format("the headers have more than {} bytes", limit));
  }
  if (end == in_.npos) return Read();
  Result<HttpRequest> head = ParseHead(std::string_view(in_).substr(0, end + 2));
  if (!head.ok()) return Refuse(400, head.status().message());
  request_ = std::move(head).value();
  has_head_ = true;
  started_ = Clock::now();
  common_headers_ = shared_.handler.CommonHeaders(request_);
  const size_t body_limit = shared_.body_bytes;
  if (static_cast<uint64_t>(request_.body_length) > body_limit) {
    return Refuse(413, fmt::format("the body has {} bytes, at most {} are read",
                                   request_.body_length, body_limit));
  }
  if (auto answer = shared_.handler.Screen(request_)) {
    const bool has_body = request_.is_chunked || request_.body_length > 0;
    keep_alive_ = request_.keep_alive && !has_body;
    return Respond(std::move(*answer));
  }
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(limit) + 4);
  parser_->body_limit(body_limit);
  parser_->eager(true);
  ErrorCode error;
  const size_t used = parser_->put(asio::buffer(in_.data(), end + 4), error);
  if ((error && error != http::error::need_more) || !parser_->is_header_done() || used != end + 4) {
    return Refuse(400, "the head of the request is not HTTP/1.1");
  }
  in_.erase(0, used);
  state_ = State::kBody;
  body_deadline_ = started_ + Seconds(shared_.limits.whole_body);
  if (request_.expects_100 && !parser_->is_done()) {
    out_ += "HTTP/1.1 100 Continue\r\n\r\n";
    FlushOut();
  }
}

void Connection::ParseBody() {
  while (!parser_->is_done() && !in_.empty()) {
    ErrorCode error;
    const size_t used = parser_->put(asio::buffer(in_), error);
    in_.erase(0, used);
    if (error == http::error::body_limit) {
      return Refuse(413, fmt::format("the body has more than {} bytes", shared_.body_bytes.load()));
    }
    if (error && error != http::error::need_more) {
      return Refuse(400, "the body is not framed as HTTP/1.1 has it");
    }
    if (error == http::error::need_more && used == 0) break;
  }
  if (parser_->is_done()) return Dispatch();
  if (in_.size() > kReadBytes) return Refuse(400, "the body is not framed as HTTP/1.1 has it");
  if (Clock::now() > body_deadline_) return Refuse(408, "the request did not come in time");
  SetDeadline(shared_.limits.body);
  Read();
}

void Connection::Dispatch() {
  state_ = State::kWorking;
  timer_.cancel();
  ++serial_;
  HttpRequest request = request_;
  request.body = std::move(parser_->get().body());
  parser_.reset();
  answer_ended_ = false;
  status_ = 0;
  keep_alive_ = request_.keep_alive && !shared_.stopping;
  auto exchange = std::make_shared<ExchangeImpl>(shared_from_this(), std::move(request));
  Read();
  asio::post(shared_.workers, [exchange, &handler = shared_.handler] {
    std::string what;
    try {
      return handler.Handle(exchange);
    } catch (const std::bad_alloc&) {
      what = "there is no memory left for this request";
    } catch (const std::exception&) {
      what = "a bug of the server, not of the request";
    }
    exchange->Post([exchange, answer = handler.Error(500, what)]() mutable {
      exchange->Send(std::move(answer));
    });
  });
}

void Connection::Refuse(int status, const std::string& message) {
  keep_alive_ = false;
  Respond(shared_.handler.Error(status, message));
}

// An answer without a handler's.
void Connection::Respond(HttpResponse response) {
  if (!has_head_) request_ = HttpRequest{};
  // What is left of a request that was refused is not another request.
  if (const size_t end = in_.find("\r\n\r\n"); keep_alive_ && end != in_.npos)
    in_.erase(0, end + 4);
  state_ = State::kWorking;
  timer_.cancel();
  ++serial_;
  answer_ended_ = false;
  status_ = 0;
  Begin(std::move(response), false);
}

void Connection::Begin(HttpResponse head, bool is_stream) {
  if (status_ != 0) return;
  status_ = head.status;
  const bool has_body = head.status != 204 && request_.method != "HEAD";
  is_chunked_ = is_stream && !request_.is_http10;
  if (is_stream && request_.is_http10) keep_alive_ = false;
  out_ += fmt::format("HTTP/1.1 {} {}\r\n", head.status, ReasonPhrase(head.status));
  if (head.status != 204) out_ += fmt::format("Content-Type: {}\r\n", head.content_type);
  for (const auto& list : {common_headers_, head.headers}) {
    for (const Header& h : list) out_ += fmt::format("{}: {}\r\n", h.name, h.value);
  }
  if (is_chunked_) {
    out_ += "Transfer-Encoding: chunked\r\n";
  } else if (!is_stream && head.status != 204) {
    out_ += fmt::format("Content-Length: {}\r\n", head.body.size());
  }
  if (!keep_alive_) out_ += "Connection: close\r\n";
  out_ += "\r\n";
  common_headers_.clear();
  if (is_stream) {
    Write(head.body);
    return FlushOut();
  }
  if (has_body) out_ += head.body;
  answer_ended_ = true;
  FlushOut();
}

void Connection::Write(std::string_view part) {
  if (part.empty()) return;
  if (is_chunked_) out_ += fmt::format("{:x}\r\n", part.size());
  out_ += part;
  if (is_chunked_) out_ += "\r\n";
  if (full()) was_full_ = true;
  FlushOut();
}

void Connection::End() {
  if (is_chunked_) out_ += "0\r\n\r\n";
  answer_ended_ = true;
  FlushOut();
}

void Connection::After(double seconds, std::function<void()> call) {
  after_ = std::move(call);
  after_timer_.expires_after(Seconds(seconds));
  after_timer_.async_wait([self = shared_from_this(), serial = serial_](ErrorCode error) {
    if (error || Clock::now() < self->after_timer_.expiry() || !self->IsAnswering(serial)) return;
    if (const auto after = std::exchange(self->after_, nullptr)) after();
  });
}

void Connection::FlushOut() {
  if (is_sending_ || state_ == State::kClosed) return;
  if (sent_ == sending_.size()) {
    sending_.clear();
    sent_ = 0;
    std::swap(sending_, out_);
  }
  if (sending_.empty()) {
    if (state_ == State::kWorking && answer_ended_) Finish();
    return;
  }
  is_sending_ = true;
  send_timer_.expires_after(Seconds(shared_.limits.send));
  send_timer_.async_wait([self = shared_from_this()](ErrorCode error) {
    if (!error && self->is_sending_ && Clock::now() >= self->send_timer_.expiry()) self->Close();
  });
  socket_.async_write_some(asio::buffer(sending_.data() + sent_, sending_.size() - sent_),
                           [self = shared_from_this()](ErrorCode error, size_t n) {
                             self->is_sending_ = false;
                             self->OnSent(error, n);
                           });
}

void Connection::OnSent(ErrorCode error, size_t n) {
  if (state_ == State::kClosed) return;
  if (error) return Close();
  sent_ += n;
  if (was_full_ && !full()) {
    was_full_ = false;
    if (const auto call = on_room) call();
  }
  FlushOut();
}

// The last byte of an answer is with the system.
void Connection::Finish() {
  send_timer_.cancel();
  after_timer_.cancel();
  // These may hold the exchange, which holds this connection.
  on_room = on_gone = after_ = nullptr;
  if (has_head_) {
    shared_.handler.Answered(request_, status_,
                             std::chrono::duration<double>(Clock::now() - started_).count());
  }
  if (!keep_alive_) return Linger();
  NextRequest();
}

// Reads on for a while before it closes, else what the client still sends would make the system
// throw the answer away.
void Connection::Linger() {
  state_ = State::kLinger;
  ErrorCode ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  SetDeadline(kLingerSeconds);
  Read();
}

void Connection::Gone() {
  on_room = after_ = nullptr;
  if (has_head_) {
    shared_.handler.Answered(request_, 499,
                             std::chrono::duration<double>(Clock::now() - started_).count());
  }
  if (const auto call = std::exchange(on_gone, nullptr)) call();
}

class ServerImpl final : public HttpServer {
 public:
  ServerImpl(const HttpOptions& options, Handler& handler)
      : shared_(handler, options), acceptor_(asio::make_strand(io_)) {}
  ~ServerImpl() override { Stop(0); }

  Status Listen(const HttpOptions& options) {
    const auto failed = [&](const ErrorCode& error) {
      return Status::Io(
          fmt::format("cannot listen on {}:{}: {}", options.host, options.port, error.message()));
    };
    ErrorCode error;
    const auto address =
        asio::ip::make_address(options.host == "localhost" ? "127.0.0.1" : options.host, error);
    if (error) {
      return Status::Invalid(fmt::format(
          "the host is '{}', wanted an address such as 127.0.0.1, 0.0.0.0 or ::1", options.host));
    }
    const tcp::endpoint endpoint(address, options.port);
    acceptor_.open(endpoint.protocol(), error);
    if (error) return failed(error);
    acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    acceptor_.bind(endpoint, error);
    if (error) return failed(error);
    acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) return failed(error);
    port_ = acceptor_.local_endpoint().port();
    Accept();
    for (int i = 0; i < options.io_threads; ++i) threads_.emplace_back([this] { io_.run(); });
    return Status::Ok();
  }

  uint16_t port() const override { return port_; }
  int64_t num_connections() const override {
    const std::lock_guard lock(shared_.mutex);
    return static_cast<int64_t>(shared_.connections.size());
  }
  void set_body_bytes(size_t limit) override { shared_.body_bytes = limit; }

  void Stop(double seconds) override {
    if (stopped_) return;
    stopped_ = true;
    shared_.stopping = true;
    asio::post(acceptor_.get_executor(), [this] {
      ErrorCode ignored;
      acceptor_.close(ignored);
    });
    ForEach(&Connection::CloseWhenIdle);
    WaitUntilEmpty(seconds);
    ForEach(&Connection::Close);
    WaitUntilEmpty(1);
    shared_.workers.join();
    io_.stop();
    for (std::thread& t : threads_) t.join();
  }

 private:
  void Accept() {
    acceptor_.async_accept(asio::make_strand(io_), [this](ErrorCode error, tcp::socket socket) {
      if (shared_.stopping || error == asio::error::operation_aborted) return;
      if (!error) {
        const bool is_too_many =
            num_connections() >= static_cast<int64_t>(shared_.limits.connections);
        auto connection = std::make_shared<Connection>(std::move(socket), shared_);
        connection->Post([connection, is_too_many] { connection->Start(is_too_many); });
        return Accept();
      }
      // No descriptor is free, most likely: some will be.
      retry_.expires_after(std::chrono::milliseconds(100));
      retry_.async_wait([this](ErrorCode) { Accept(); });
    });
  }

  void ForEach(void (Connection::*call)()) {
    const std::lock_guard lock(shared_.mutex);
    for (Connection* c : shared_.connections) {
      // One whose last owner is about to end it needs no call.
      if (const auto owned = c->weak_from_this().lock()) {
        kept_.push_back(owned);
        owned->Post([owned, call] { ((*owned).*call)(); });
      }
    }
  }
  void WaitUntilEmpty(double seconds) {
    kept_.clear();
    std::unique_lock lock(shared_.mutex);
    shared_.empty.wait_for(lock, Seconds(seconds), [this] { return shared_.connections.empty(); });
  }

  // In this order: connections live in io_, and use shared_ when they end.
  mutable Shared shared_;
  asio::io_context io_;
  tcp::acceptor acceptor_;
  asio::steady_timer retry_{acceptor_.get_executor()};
  std::vector<std::thread> threads_;
  std::vector<std::shared_ptr<Connection>> kept_;
  uint16_t port_ = 0;
  bool stopped_ = false;
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpOptions& options,
                                                      Handler& handler) {
  auto server = std::make_unique<ServerImpl>(options, handler);
  MM01_RETURN_IF_ERROR(server->Listen(options));
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace mm01::server
