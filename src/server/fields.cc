#include "server/fields.h"

#include <fmt/core.h>

#include <cmath>
#include <limits>

#include "base/json.h"

namespace mm01::server {

std::string TypeName(const Json& value) {
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "a boolean";
  if (value.is_number_float()) return "a number with a fraction or exponent";
  if (value.is_number()) return "a whole number";
  if (value.is_string()) return "a string";
  return value.is_array() ? "a list" : "an object";
}

Fields::Fields(const Json& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {
  if (object_.is_object()) return;
  const std::string where = prefix_.empty() ? "the body" : prefix_.substr(0, prefix_.size() - 1);
  error_ =
      ApiError{400, fmt::format("{} is {}, wanted an object", where, TypeName(object_)), "", ""};
}

void Fields::Fail(std::string_view name, std::string message) {
  if (!error_) error_ = ApiError{400, std::move(message), Name(name), ""};
}

const Json* Fields::Find(std::string_view name) const {
  if (!object_.is_object()) return nullptr;
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void Fields::Bool(std::string_view name, bool* out) {
  const Json* value = Find(name);
  if (value == nullptr || !ok()) return;
  if (!value->is_boolean()) {
    return Fail(name, fmt::format("{} is {}, wanted true or false", Name(name), TypeName(*value)));
  }
  *out = value->get<bool>();
}

void Fields::Whole(std::string_view name, int64_t min, int64_t max, int64_t* out) {
  const Json* value = Find(name);
  if (value == nullptr || !ok()) return;
  const auto wrong = [&](const std::string& found) {
    Fail(name,
         fmt::format("{} is {}, wanted a whole number from {} to {}", Name(name), found, min, max));
  };
  if (!value->is_number_integer()) return wrong(TypeName(*value));
  const bool is_huge =
      value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (is_huge || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    return wrong(value->dump());
  }
  *out = value->get<int64_t>();
}

void Fields::Real(std::string_view name, double min, double max, double* out) {
  const Json* value = Find(name);
  if (value == nullptr || !ok()) return;
  const double number =
      value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
  if (!(number >= min && number <= max)) {
    return Fail(name, fmt::format("{} is {}, wanted a number from {} to {}", Name(name),
                                  value->is_number() ? value->dump() : TypeName(*value), min, max));
  }
  *out = number;
}

void Fields::Text(std::string_view name, size_t max_bytes, std::string* out) {
  const Json* value = Find(name);
  if (value == nullptr || !ok()) return;
  if (!value->is_string()) {
    return Fail(name, fmt::format("{} is {}, wanted a string", Name(name), TypeName(*value)));
  }
  const auto& text = value->get_ref<const std::string&>();
  if (text.size() > max_bytes) {
    return Fail(name, fmt::format("{} has {} bytes, wanted at most {}", Name(name), text.size(),
                                  max_bytes));
  }
  *out = text;
}

void Fields::Texts(std::string_view name, size_t max_count, size_t max_bytes,
                   std::vector<std::string>* out) {
  const Json* value = Find(name);
  if (value == nullptr || !ok()) return;
  if (value->is_string()) {
    out->resize(1);
    return Text(name, max_bytes, &out->front());
  }
  if (!value->is_array()) {
    return Fail(name, fmt::format("{} is {}, wanted a string or a list of strings", Name(name),
                                  TypeName(*value)));
  }
  if (value->size() > max_count) {
    return Fail(name, fmt::format("{} has {} entries, wanted at most {}", Name(name), value->size(),
                                  max_count));
  }
  out->clear();
  for (const Json& entry : *value) {
    if (!entry.is_string() || entry.get_ref<const std::string&>().size() > max_bytes) {
      return Fail(name, fmt::format("an entry of {} is not a string of at most {} bytes",
                                    Name(name), max_bytes));
    }
    out->push_back(entry.get<std::string>());
  }
}

}  // namespace mm01::server
