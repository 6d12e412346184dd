// The plainest HTTP client, on a socket, for tests of the server.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace mm01::testing {

class TcpClient {
 public:
  explicit TcpClient(uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~TcpClient() { Close(); }
  TcpClient(const TcpClient&) = delete;
  TcpClient& operator=(const TcpClient&) = delete;

  bool connected() const { return connected_; }
  void Close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  bool Write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  // What has come until `end` was in it, the other side closed, or ten seconds passed in silence.
  std::string ReadUntil(std::string_view end) {
    std::string text;
    char buffer[4096];
    while (end.empty() || text.find(end) == text.npos) {
      pollfd wait{fd_, POLLIN, 0};
      if (::poll(&wait, 1, 10'000) <= 0) break;
      const ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
      if (n <= 0) break;
      text.append(buffer, static_cast<size_t>(n));
    }
    return text;
  }
  std::string ReadAll() { return ReadUntil(""); }

 private:
  int fd_;
  bool connected_ = false;
};

struct HttpAnswer {
  int status = 0;
  std::string head, body;
};

// One request on a connection of its own; chunked bodies are put together.
inline HttpAnswer Fetch(uint16_t port, std::string_view method, std::string_view target,
                        std::string_view body = "", std::string_view headers = "") {
  TcpClient client(port);
  std::string request(method);
  request.append(" ").append(target).append(" HTTP/1.1\r\nHost: 127.0.0.1\r\n");
  request.append("Connection: close\r\n").append(headers);
  if (method == "POST") {
    request.append("Content-Type: application/json\r\nContent-Length: ");
    request.append(std::to_string(body.size())).append("\r\n");
  }
  request.append("\r\n").append(body);
  client.Write(request);
  const std::string all = client.ReadAll();
  HttpAnswer answer;
  const size_t end = all.find("\r\n\r\n");
  if (end == all.npos) return answer;
  answer.head = all.substr(0, end + 2);
  answer.status = std::stoi(all.substr(9, 3));
  std::string_view rest = std::string_view(all).substr(end + 4);
  if (answer.head.find("Transfer-Encoding: chunked") == std::string::npos) {
    answer.body = rest;
    return answer;
  }
  while (!rest.empty()) {
    const size_t size = std::stoul(std::string(rest.substr(0, rest.find('\r'))), nullptr, 16);
    if (size == 0) break;
    rest.remove_prefix(rest.find('\n') + 1);
    answer.body += rest.substr(0, size);
    rest.remove_prefix(size + 2);
  }
  return answer;
}

}  // namespace mm01::testing
