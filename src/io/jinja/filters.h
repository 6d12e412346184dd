// Filters (x | name) and tests (x is name) by name.
#pragma once

#include <string_view>

#include "base/status.h"
#include "io/jinja/arguments.h"
#include "io/jinja/value.h"

namespace mm01::jinja {

bool HasFilter(std::string_view name);
bool HasTest(std::string_view name);

// A name that does not exist, which a template can reach through `map` and `select`, is an error.
Result<Value> ApplyFilter(Runtime& rt, std::string_view name, const Value& v,
                          const Arguments& args);
Result<bool> ApplyTest(Runtime& rt, std::string_view name, const Value& v, const Arguments& args);

}  // namespace mm01::jinja
