// An error in the shape that OpenAI's clients read: {"error": {message, type, param, code}}.
#pragma once

#include <string>
#include <utility>

#include "base/status.h"
#include "server/http.h"

namespace mm01::server {

struct ApiError {
  int status = 400;
  std::string message;
  std::string param;  // the field at fault, or empty
  std::string code;   // for programs: "context_length_exceeded"; or empty
};

// A field of the request is wrong: 400.
inline ApiError WrongField(const std::string& param, std::string message) {
  return {400, std::move(message), param, ""};
}

// The body, and as an answer; 429 and 503 say Retry-After.
std::string ErrorBody(const ApiError& error);
HttpResponse ErrorResponse(const ApiError& error);

// Of what the library said: 400, 404, 501 as 400, 503 for what is too large just now.
ApiError ToApiError(const Status& status);

}  // namespace mm01::server
