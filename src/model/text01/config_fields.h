// Typed access to the fields of a JSON object from an untrusted file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"

namespace mm01 {

// A value as an error quotes it: short, and printable ASCII whatever the file held.
std::string QuoteJson(const Json& value);

// The integer, or nothing where `value` is no integer or does not fit.
std::optional<int64_t> JsonInt(const Json& value);

// The spellings of one field, the usual one first.
using FieldNames = std::vector<std::string>;

// The fields of one object, which must outlive this. The first error stays in status(), in the form
// "where: field is VALUE, wanted ..."; a getter that failed returns zero, or what `absent` says.
// Null counts as absent. Where several spellings of a field are there, they must agree. A field
// without an `absent` value must be there.
class ConfigFields {
 public:
  ConfigFields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const Json* Find(const FieldNames& names);  // null where absent
  int64_t Int(const FieldNames& names, std::optional<int64_t> absent = std::nullopt);
  double Number(const FieldNames& names, std::optional<double> absent = std::nullopt);
  std::optional<bool> Bool(const FieldNames& names);
  std::string String(const FieldNames& names, const std::string& absent);

  // The fields of an object in this one. Errors go to it, until Join takes them up here.
  std::optional<ConfigFields> Object(const std::string& name);
  void Join(const ConfigFields& inner);

  void WrongType(const FieldNames& names, const Json& value, const std::string& wanted);
  void Invalid(const std::string& what);
  void Unsupported(const std::string& what);
  const Status& status() const { return status_; }

 private:
  const std::string& SpellingOf(const FieldNames& names) const;

  const Json& object_;
  std::string where_;
  Status status_;
};

}  // namespace mm01
