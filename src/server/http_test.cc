#include "server/http.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "testing/http_client.h"

namespace mm01::server {
namespace {

using mm01::testing::Fetch;
using mm01::testing::TcpClient;

// Gives back bodies; streams, throws and waits where the path says so.
class EchoHandler final : public Handler {
 public:
  std::optional<HttpResponse> Screen(const HttpRequest& head) override {
    if (head.path == "/denied") return HttpResponse{.status = 401, .body = "no"};
    return std::nullopt;
  }
  std::vector<Header> CommonHeaders(const HttpRequest&) override { return {{"X-Common", "yes"}}; }
  HttpResponse Error(int status, const std::string& message) override {
    return {.status = status, .body = message};
  }
  void Handle(std::shared_ptr<Exchange> exchange) override {
    const std::string& path = exchange->request().path;
    if (path == "/throw") Fail("on purpose");
    exchange->Post([this, exchange, path] {
      if (path == "/stream") {
        exchange->Begin({.content_type = "text/plain"});
        for (const char* part : {"one ", "two ", "three"}) exchange->Write(part);
        return exchange->End();
      }
      if (path == "/wait" || path == "/flood") {
        exchange->OnGone([this] { Note(&gone_); });
        exchange->Begin({.content_type = "text/plain", .body = "begun"});
        if (path == "/flood") {
          while (!exchange->full()) exchange->Write(std::string(1 << 16, 'x'));
          exchange->OnRoom([exchange] {
            while (!exchange->full()) exchange->Write(std::string(1 << 16, 'x'));
          });
        }
        return;
      }
      exchange->Send({.content_type = "text/plain", .body = exchange->TakeBody()});
    });
  }
  void Answered(const HttpRequest&, int status, double) override {
    last_status_ = status;
    Note(&answered_);
  }

  void Note(int* count) {
    const std::lock_guard lock(mutex_);
    ++*count;
    changed_.notify_all();
  }
  bool WaitFor(int EchoHandler::*count, int value) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return this->*count >= value; });
  }

  int gone_ = 0, answered_ = 0;
  std::atomic<int> last_status_{0};

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

class Http : public ::testing::Test {
 protected:
  void Start(HttpLimits limits = {}) {
    server_ = HttpServer::Start({.limits = limits}, handler_).value();
  }
  EchoHandler handler_;
  std::unique_ptr<HttpServer> server_;
};

constexpr const char* kGet = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

TEST_F(Http, AnswersBodiesAndHead) {
  Start();
  const auto answer = Fetch(server_->port(), "POST", "/echo", "hello");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "hello");
  EXPECT_NE(answer.head.find("X-Common: yes"), std::string::npos);
  const auto head = Fetch(server_->port(), "HEAD", "/echo");
  EXPECT_EQ(head.status, 200);
  EXPECT_TRUE(head.body.empty());
}

TEST_F(Http, StreamsInChunks) {
  Start();
  EXPECT_EQ(Fetch(server_->port(), "GET", "/stream").body, "one two three");
}

TEST_F(Http, KeepsTheConnectionAndTakesPipelines) {
  Start();
  TcpClient client(server_->port());
  const std::string one = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
  const std::string two =
      "POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: "
      "chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n";
  client.Write(one + two + one);
  const std::string last = "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
  client.Write(last);
  const std::string all = client.ReadAll();
  const size_t def = all.find("def");
  EXPECT_LT(all.find("abc"), def);
  EXPECT_LT(def, all.find("abc", def));
  EXPECT_NE(all.find("Connection: close"), all.npos);
}

TEST_F(Http, SendsContinue) {
  Start();
  TcpClient client(server_->port());
  client.Write("POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Write("ok");
  EXPECT_NE(client.ReadUntil("ok").find("200 OK"), std::string::npos);
}

TEST_F(Http, BytewiseRequestsAreWhole) {
  Start();
  TcpClient client(server_->port());
  for (const char c :
       std::string("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                   "3\r\nabc\r\n0\r\n\r\n")) {
    client.Write(std::string(1, c));
  }
  EXPECT_TRUE(client.ReadUntil("abc").ends_with("abc"));
}

TEST_F(Http, LimitsHaveTheirStatus) {
  Start({.header_bytes = 1000, .body_bytes = 100});
  const uint16_t port = server_->port();
  EXPECT_EQ(Fetch(port, "GET", "/x", "", "X: " + std::string(2000, 'x') + "\r\n").status, 431);
  EXPECT_EQ(Fetch(port, "POST", "/x", std::string(100, 'x')).status, 200);
  EXPECT_EQ(Fetch(port, "POST", "/x", std::string(101, 'x')).status, 413);
  TcpClient chunked(port);
  chunked.Write("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n80\r\n" +
                std::string(128, 'x') + "\r\n0\r\n\r\n");
  EXPECT_NE(chunked.ReadAll().find(" 413 "), std::string::npos);
  server_->set_body_bytes(1000);
  EXPECT_EQ(Fetch(port, "POST", "/x", std::string(101, 'x')).status, 200);
}

TEST_F(Http, ScreenAnswersBeforeTheBody) {
  Start();
  TcpClient client(server_->port());
  client.Write("POST /denied HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
  const std::string answer = client.ReadAll();
  EXPECT_NE(answer.find("401 Unauthorized"), std::string::npos);
  EXPECT_NE(answer.find("Connection: close"), std::string::npos);
  TcpClient get(server_->port());
  get.Write("GET /denied HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_NE(get.ReadUntil("no").find("401"), std::string::npos);
  get.Write(kGet);
  EXPECT_NE(get.ReadUntil("\r\n\r\n").find("200"), std::string::npos);
}

TEST_F(Http, WrongFramingIs400) {
  Start();
  for (const char* body : {"xyz\r\n", "-1\r\n", "3\r\nabcd\r\n0\r\n\r\n", "3\nabc\n0\n\n",
                           "ffffffffffffffffff\r\n", "3 \r\nabc\r\n0\r\n\r\n"}) {
    TcpClient client(server_->port());
    client.Write(std::string("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n") +
                 body + kGet);
    const std::string answer = client.ReadAll();
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 413 "))
        << body << answer;
    EXPECT_EQ(answer.find("200 OK"), answer.npos) << body;
  }
}

TEST_F(Http, SlowClientsAreCutOff) {
  Start({.head = 0.2, .body = 0.2, .idle = 0.3});
  TcpClient silent(server_->port());
  EXPECT_EQ(silent.ReadAll(), "");
  TcpClient head(server_->port());
  head.Write("GET / HT");
  EXPECT_NE(head.ReadAll().find(" 408 "), std::string::npos);
  TcpClient body(server_->port());
  body.Write("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_NE(body.ReadAll().find(" 408 "), std::string::npos);
}

TEST_F(Http, AClientThatNeverReadsIsCutOff) {
  Start({.send_buffer_bytes = 1 << 16, .send = 0.3});
  TcpClient client(server_->port());
  client.Write("GET /flood HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_TRUE(handler_.WaitFor(&EchoHandler::gone_, 1));
}

TEST_F(Http, AClientThatLeavesIsNoticed) {
  Start();
  TcpClient client(server_->port());
  client.Write("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  client.ReadUntil("begun");
  client.Close();
  EXPECT_TRUE(handler_.WaitFor(&EchoHandler::gone_, 1));
  EXPECT_TRUE(handler_.WaitFor(&EchoHandler::answered_, 1));
  EXPECT_EQ(handler_.last_status_, 499);
}

TEST_F(Http, WhatHandlersThrowIs500) {
  Start();
  const auto answer = Fetch(server_->port(), "GET", "/throw");
  EXPECT_EQ(answer.status, 500);
  EXPECT_EQ(answer.body.find("on purpose"), std::string::npos);
}

TEST_F(Http, TooManyConnectionsAreTold) {
  Start({.connections = 2});
  TcpClient one(server_->port()), two(server_->port());
  one.Write(kGet);
  two.Write(kGet);
  one.ReadUntil("\r\n\r\n");
  two.ReadUntil("\r\n\r\n");
  TcpClient three(server_->port());
  EXPECT_NE(three.ReadAll().find(" 503 "), std::string::npos);
}

TEST_F(Http, StopCutsOffWhatDoesNotEnd) {
  Start();
  TcpClient waits(server_->port()), idle(server_->port());
  waits.Write("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  waits.ReadUntil("begun");
  server_->Stop(0.2);
  EXPECT_EQ(handler_.gone_, 1);
  EXPECT_EQ(idle.ReadAll(), "");
  EXPECT_EQ(server_->num_connections(), 0);
}

TEST(HttpListen, SaysWhatIsWrong) {
  EchoHandler handler;
  const auto wrong = HttpServer::Start({.host = "not an address"}, handler);
  EXPECT_EQ(wrong.status().code(), Code::kInvalid);
  const auto first = HttpServer::Start({}, handler);
  const auto second = HttpServer::Start({.port = first.value()->port()}, handler);
  EXPECT_EQ(second.status().code(), Code::kIo);
}

}  // namespace
}  // namespace mm01::server
