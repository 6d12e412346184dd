// Typed access to the fields of parsed JSON objects; `where` names the object in the error.
#pragma once

#include <string>

#include "base/json_fwd.h"
#include "base/status.h"

namespace mm01 {

// Null where the field is missing or null. `object` has to be a JSON object.
const Json* FindField(const Json& object, const char* key);

// Missing and null count as `absent`; any other type than the named one is Invalid.
Result<bool> BoolField(const Json& object, const char* key, bool absent, const std::string& where);

// Errors    NotFound where the field is missing or null, Invalid where its type is another.
Result<std::string> StringField(const Json& object, const char* key, const std::string& where);

}  // namespace mm01
