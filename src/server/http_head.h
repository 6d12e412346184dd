// The head of an HTTP/1.1 request, read strictly: what two readers could understand differently is
// refused, so that a proxy in front and this server never disagree where a request ends.
//
// Refused   line ends other than CRLF, folded lines, control bytes, names that are no token, blanks
//           before a colon, targets that do not begin with '/', versions other than 1.0 and 1.1,
//           Content-Length twice or not plain digits, any Transfer-Encoding but one "chunked", both
//           together, chunked in HTTP/1.0, no Host or several in HTTP/1.1, over 100 fields.
// Source    RFC 9110, RFC 9112 sections 2.2, 3, 5, 6.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace mm01::server {

struct Header {
  std::string name;  // of a request: in lower case
  std::string value;
};

struct HttpRequest {
  std::string method;
  std::string path;   // as sent, from '/' to before '?'
  std::string query;  // after '?'
  std::vector<Header> headers;
  std::string body;
  bool is_http10 = false;
  bool keep_alive = true;    // the client's wish
  bool is_chunked = false;   // how the body comes
  int64_t body_length = 0;   // of Content-Length
  bool expects_100 = false;  // waits for "100 Continue" before it sends the body

  // The first header of that name (lower case), or null.
  const std::string* Find(std::string_view name) const;
};

// `head` is the request line and the fields, each with its CRLF, without the empty line.
Result<HttpRequest> ParseHead(std::string_view head);

std::string ToLower(std::string_view text);  // ASCII

}  // namespace mm01::server
