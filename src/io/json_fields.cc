#include "io/json_fields.h"

#include <fmt/core.h>

#include "base/json.h"

namespace mm01 {

const Json* FindField(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

Result<bool> BoolField(const Json& object, const char* key, bool absent, const std::string& where) {
  const Json* field = FindField(object, key);
  if (field == nullptr) return absent;
  if (!field->is_boolean()) {
    return Status::Invalid(
        fmt::format("{}: \"{}\" is a {}, wanted true or false", where, key, field->type_name()));
  }
  return field->get<bool>();
}

Result<std::string> StringField(const Json& object, const char* key, const std::string& where) {
  const Json* field = FindField(object, key);
  if (field == nullptr) {
    return Status::NotFound(fmt::format("{}: \"{}\" is missing, wanted a string", where, key));
  }
  if (!field->is_string()) {
    return Status::Invalid(
        fmt::format("{}: \"{}\" is a {}, wanted a string", where, key, field->type_name()));
  }
  return field->get<std::string>();
}

}  // namespace mm01
