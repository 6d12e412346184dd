#include "server/http_head.h"

#include <fmt/core.h>

#include <algorithm>

namespace mm01::server {
namespace {

constexpr size_t kMaxFields = 100;
constexpr size_t kMaxDigits = 18;  // of Content-Length: what an int64_t always holds

bool IsTokenByte(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

bool IsToken(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), IsTokenByte);
}

bool IsControl(char c) {
  return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f;
}

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") + 1 - begin);
}

Status ParseRequestLine(std::string_view line, HttpRequest* request) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == line.npos || first == last) {
    return Status::Invalid("the request line has not three words");
  }
  const std::string_view method = line.substr(0, first);
  const std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  if (!IsToken(method)) return Status::Invalid("the method is no token");
  if (target.empty() || target[0] != '/') {
    return Status::Invalid("the target does not begin with '/'");
  }
  const auto is_plain = [](char c) { return static_cast<unsigned char>(c) > 0x20 && c != 0x7f; };
  if (!std::all_of(target.begin(), target.end(), is_plain)) {
    return Status::Invalid("the target holds a blank or a control byte");
  }
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    return Status::Invalid("the version is neither HTTP/1.1 nor HTTP/1.0");
  }
  const size_t question = target.find('?');
  request->method = method;
  request->path = target.substr(0, question);
  if (question != target.npos) request->query = target.substr(question + 1);
  request->is_http10 = version == "HTTP/1.0";
  return Status::Ok();
}

Status ParseField(std::string_view line, HttpRequest* request) {
  const size_t colon = line.find(':');
  if (colon == line.npos || !IsToken(line.substr(0, colon))) {
    return Status::Invalid("a header line does not begin with a name and a colon");
  }
  const std::string_view value = Trim(line.substr(colon + 1));
  if (std::any_of(value.begin(), value.end(), IsControl)) {
    return Status::Invalid("a header holds a control byte");
  }
  if (request->headers.size() == kMaxFields) {
    return Status::Invalid(fmt::format("more than {} headers", kMaxFields));
  }
  request->headers.push_back({ToLower(line.substr(0, colon)), std::string(value)});
  return Status::Ok();
}

size_t Count(const HttpRequest& request, std::string_view name) {
  return static_cast<size_t>(std::count_if(request.headers.begin(), request.headers.end(),
                                           [&](const Header& h) { return h.name == name; }));
}

// How the body is framed: RFC 9112 section 6.
Status ReadFraming(HttpRequest* request) {
  const std::string* length = request->Find("content-length");
  const std::string* coding = request->Find("transfer-encoding");
  if (length != nullptr && coding != nullptr) {
    return Status::Invalid("Content-Length and Transfer-Encoding are both given");
  }
  if (Count(*request, "content-length") > 1) return Status::Invalid("two Content-Length headers");
  if (Count(*request, "transfer-encoding") > 1) {
    return Status::Invalid("two Transfer-Encoding headers");
  }
  if (length != nullptr) {
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    if (length->empty() || length->size() > kMaxDigits ||
        !std::all_of(length->begin(), length->end(), is_digit)) {
      return Status::Invalid("Content-Length is no plain number");
    }
    request->body_length = std::stoll(*length);
  }
  if (coding != nullptr) {
    if (ToLower(*coding) != "chunked") return Status::Invalid("Transfer-Encoding is not chunked");
    if (request->is_http10) return Status::Invalid("Transfer-Encoding in HTTP/1.0");
    request->is_chunked = true;
  }
  return Status::Ok();
}

Status ReadConnection(HttpRequest* request) {
  const size_t hosts = Count(*request, "host");
  if (hosts > 1 || (hosts == 0 && !request->is_http10)) {
    return Status::Invalid(fmt::format("{} Host headers, wanted one", hosts));
  }
  request->keep_alive = !request->is_http10;
  if (const std::string* value = request->Find("connection")) {
    const std::string wish = ToLower(*value);
    if (wish.find("close") != wish.npos) request->keep_alive = false;
  }
  if (const std::string* value = request->Find("expect")) {
    if (ToLower(*value) != "100-continue") return Status::Invalid("Expect is not 100-continue");
    request->expects_100 = !request->is_http10;
  }
  return Status::Ok();
}

}  // namespace

std::string ToLower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

const std::string* HttpRequest::Find(std::string_view name) const {
  for (const Header& h : headers) {
    if (h.name == name) return &h.value;
  }
  return nullptr;
}

Result<HttpRequest> ParseHead(std::string_view head) {
  HttpRequest request;
  bool is_first = true;
  while (!head.empty()) {
    const size_t end = head.find('\n');
    if (end == head.npos || end == 0 || head[end - 1] != '\r') {
      return Status::Invalid("a line does not end with CR and LF");
    }
    const std::string_view line = head.substr(0, end - 1);
    head.remove_prefix(end + 1);
    if (line.find('\r') != line.npos) return Status::Invalid("a CR stands inside a line");
    if (is_first) {
      MM01_RETURN_IF_ERROR(ParseRequestLine(line, &request));
    } else {
      MM01_RETURN_IF_ERROR(ParseField(line, &request));
    }
    is_first = false;
  }
  if (is_first) return Status::Invalid("an empty request");
  MM01_RETURN_IF_ERROR(ReadFraming(&request));
  MM01_RETURN_IF_ERROR(ReadConnection(&request));
  return request;
}

}  // namespace mm01::server
