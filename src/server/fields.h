// Reads the fields of a request's JSON object, each with its type and range. The first that is
// wrong is kept, later ones are not looked at: read all, then ask.
//
// A field that is missing or null leaves the value as it was.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "server/api_error.h"

namespace mm01::server {

class Fields {
 public:
  // `object` outlives this. `prefix` stands before names in errors: "stream_options.".
  explicit Fields(const Json& object, std::string prefix = "");

  const std::optional<ApiError>& error() const { return error_; }
  bool ok() const { return !error_; }
  void Fail(std::string_view name, std::string message);

  const Json* Find(std::string_view name) const;  // null where missing or null

  void Bool(std::string_view name, bool* out);
  void Whole(std::string_view name, int64_t min, int64_t max, int64_t* out);
  void Real(std::string_view name, double min, double max, double* out);
  void Text(std::string_view name, size_t max_bytes, std::string* out);
  // A string or a list of them.
  void Texts(std::string_view name, size_t max_count, size_t max_bytes,
             std::vector<std::string>* out);

 private:
  std::string Name(std::string_view name) const { return prefix_ + std::string(name); }

  const Json& object_;
  std::string prefix_;
  std::optional<ApiError> error_;
};

std::string TypeName(const Json& value);  // "a string", "a list"

}  // namespace mm01::server
