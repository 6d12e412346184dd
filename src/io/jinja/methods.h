// Attributes of values that are no items: the methods of strings and dicts, and the loop variable.
#pragma once

#include <optional>
#include <vector>

#include "base/status.h"
#include "io/jinja/arguments.h"
#include "io/jinja/value.h"

namespace mm01::jinja {

struct Loop {
  std::vector<Value> items;
  size_t index = 0;
  std::optional<Value> changed;  // a tuple: what `loop.changed` saw last
};

// v.name as a method, an attribute of the loop or of a namespace; undefined if there is none. A
// method of Python that is not supported, or that would change v, is an error.
Result<Value> MethodOrUndefined(Runtime& rt, const Value& v, const Text& name);

Result<Value> CallMethod(Runtime& rt, const Method& method, const Arguments& args);

}  // namespace mm01::jinja
