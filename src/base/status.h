// The world is wrong: a file, a flag, a request, a shape that was not built. Such an error is a
// value, one sentence that says what was found, what was wanted and where, and it reaches the user
// unchanged. Our own mistakes are a different kind: see check.h.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "base/check.h"

namespace mm01 {

enum class Code {
  kOk,
  kInvalid,      // the input breaks its format or its range
  kNotFound,     // a file, tensor or name is missing
  kUnsupported,  // well formed, but not built; the message names what is
  kIo,           // the system refused a read or a write
  kTooLarge,     // does not fit; the message holds the numbers
  kCancelled,    // the caller asked to stop
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status Ok() { return {}; }
  static Status Invalid(std::string m) { return {Code::kInvalid, std::move(m)}; }
  static Status NotFound(std::string m) { return {Code::kNotFound, std::move(m)}; }
  static Status Unsupported(std::string m) { return {Code::kUnsupported, std::move(m)}; }
  static Status Io(std::string m) { return {Code::kIo, std::move(m)}; }
  static Status TooLarge(std::string m) { return {Code::kTooLarge, std::move(m)}; }
  static Status Cancelled(std::string m) { return {Code::kCancelled, std::move(m)}; }

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// A T, or the reason why there is none. value() of a failed Result is our own bug and throws.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}
  Result(Status status) : status_(std::move(status)) {
    Check(!status_.ok(), "a Result without a value needs an error");
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  T& value() & {
    Check(ok(), status_.message());
    return *value_;
  }
  const T& value() const& {
    Check(ok(), status_.message());
    return *value_;
  }
  T&& value() && {
    Check(ok(), status_.message());
    return std::move(*value_);
  }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace mm01

// Leaves the calling function with the error of `expr`, if it has one.
#define MM01_RETURN_IF_ERROR(expr)                                      \
  do {                                                                  \
    if (::mm01::Status status_ = (expr); !status_.ok()) return status_; \
  } while (false)

#define MM01_CONCAT_INNER(a, b) a##b
#define MM01_CONCAT(a, b) MM01_CONCAT_INNER(a, b)

// MM01_ASSIGN_OR_RETURN(auto x, F()): x is F()'s value, or the calling function returns F()'s
// error.
#define MM01_ASSIGN_OR_RETURN(lhs, expr) \
  MM01_ASSIGN_OR_RETURN_INNER(MM01_CONCAT(result_, __LINE__), lhs, expr)
#define MM01_ASSIGN_OR_RETURN_INNER(result, lhs, expr) \
  auto result = (expr);                                \
  if (!result.ok()) return result.status();            \
  lhs = std::move(result).value()
