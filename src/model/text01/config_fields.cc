#include "model/text01/config_fields.h"

#include <fmt/core.h>

#include <limits>

#include "base/json.h"

namespace mm01 {

std::string QuoteJson(const Json& value) {
  if (value.is_array()) return fmt::format("an array of {}", value.size());
  if (value.is_object()) return "an object";
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  return text;
}

std::optional<int64_t> JsonInt(const Json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return std::nullopt;
  }
  return value.get<int64_t>();
}

const Json* ConfigFields::Find(const FieldNames& names) {
  const Json* found = nullptr;
  const std::string* found_name = nullptr;
  for (const std::string& name : names) {
    const auto it = object_.find(name);
    if (it == object_.end() || it->is_null()) continue;
    if (found == nullptr) {
      found = &*it;
      found_name = &name;
    } else if (*found != *it) {
      Invalid(fmt::format("{} is {} but {} is {}, wanted one value", *found_name, QuoteJson(*found),
                          name, QuoteJson(*it)));
    }
  }
  return found;
}

int64_t ConfigFields::Int(const FieldNames& names, std::optional<int64_t> absent) {
  const Json* value = Find(names);
  if (value == nullptr) {
    if (!absent) Invalid(fmt::format("{} is missing", names.front()));
    return absent.value_or(0);
  }
  const std::optional<int64_t> n = JsonInt(*value);
  if (!n) WrongType(names, *value, "an integer");
  return n.value_or(0);
}

double ConfigFields::Number(const FieldNames& names, std::optional<double> absent) {
  const Json* value = Find(names);
  if (value == nullptr) {
    if (!absent) Invalid(fmt::format("{} is missing", names.front()));
    return absent.value_or(0);
  }
  if (value->is_number()) return value->get<double>();
  WrongType(names, *value, "a number");
  return 0;
}

std::optional<bool> ConfigFields::Bool(const FieldNames& names) {
  const Json* value = Find(names);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  WrongType(names, *value, "true or false");
  return std::nullopt;
}

std::string ConfigFields::String(const FieldNames& names, const std::string& absent) {
  const Json* value = Find(names);
  if (value == nullptr) return absent;
  if (value->is_string()) return value->get<std::string>();
  WrongType(names, *value, "a string");
  return absent;
}

std::optional<ConfigFields> ConfigFields::Object(const std::string& name) {
  const Json* value = Find({name});
  if (value == nullptr) return std::nullopt;
  if (value->is_object()) return ConfigFields(*value, where_ + ": " + name);
  WrongType({name}, *value, "an object");
  return std::nullopt;
}

void ConfigFields::Join(const ConfigFields& inner) {
  if (status_.ok()) status_ = inner.status_;
}

void ConfigFields::WrongType(const FieldNames& names, const Json& value,
                             const std::string& wanted) {
  Invalid(fmt::format("{} is {}, wanted {}", SpellingOf(names), QuoteJson(value), wanted));
}

void ConfigFields::Invalid(const std::string& what) {
  if (status_.ok()) status_ = Status::Invalid(where_ + ": " + what);
}

void ConfigFields::Unsupported(const std::string& what) {
  if (status_.ok()) status_ = Status::Unsupported(where_ + ": " + what);
}

const std::string& ConfigFields::SpellingOf(const FieldNames& names) const {
  for (const std::string& name : names) {
    const auto it = object_.find(name);
    if (it != object_.end() && !it->is_null()) return name;
  }
  return names.front();
}

}  // namespace mm01
