// The name of JSON values, for headers that only declare what takes or returns them: base/json.h
// costs each source that reads it two seconds.
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace mm01 {

// Keeps the order of keys: templates print objects as they were written.
using Json = nlohmann::ordered_json;

}  // namespace mm01
