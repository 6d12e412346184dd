#include "server/api_error.h"

#include "base/json.h"

namespace mm01::server {
namespace {

constexpr const char* kRetryAfterSeconds = "2";

const char* TypeOf(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

}  // namespace

std::string ErrorBody(const ApiError& error) {
  const auto text_or_null = [](const std::string& text) {
    return text.empty() ? Json(nullptr) : Json(text);
  };
  const Json body = {{"error",
                      {{"message", error.message},
                       {"type", TypeOf(error.status)},
                       {"param", text_or_null(error.param)},
                       {"code", text_or_null(error.code)}}}};
  return JsonText(body);
}

HttpResponse ErrorResponse(const ApiError& error) {
  HttpResponse response{.status = error.status, .body = ErrorBody(error)};
  if (error.status == 429 || error.status == 503) {
    response.headers.push_back({"Retry-After", kRetryAfterSeconds});
  }
  return response;
}

ApiError ToApiError(const Status& status) {
  switch (status.code()) {
    case Code::kNotFound:
      return {404, status.message(), "", ""};
    case Code::kIo:
      return {500, status.message(), "", ""};
    case Code::kCancelled:
      return {503, status.message(), "", ""};
    default:
      return {400, status.message(), "", ""};
  }
}

}  // namespace mm01::server
