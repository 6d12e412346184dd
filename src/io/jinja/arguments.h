// The arguments of one call, and their places.
#pragma once

#include <initializer_list>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "io/jinja/value.h"

namespace mm01::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<const Text*, Value>> named;
};

// Sorts arguments to `names`; the first `num_required` must be there. `what` is the callee.
Result<std::vector<std::optional<Value>>> Bind(const Arguments& args, std::string_view what,
                                               std::initializer_list<std::string_view> names,
                                               size_t num_required);

// An argument as a type, or an error that names it.
Result<const Text*> StringArgument(const Value& v, std::string_view what);
Result<int64_t> IntArgument(const Value& v, std::string_view what);

}  // namespace mm01::jinja
