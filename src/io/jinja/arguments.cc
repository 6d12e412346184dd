#include "io/jinja/arguments.h"

#include <fmt/core.h>

#include <algorithm>

namespace mm01::jinja {

Result<std::vector<std::optional<Value>>> Bind(const Arguments& args, std::string_view what,
                                               std::initializer_list<std::string_view> names,
                                               size_t num_required) {
  if (args.positional.size() > names.size()) {
    return Status::Invalid(fmt::format("{} takes at most {} arguments, found {}", what,
                                       names.size(), args.positional.size()));
  }
  std::vector<std::optional<Value>> bound(names.size());
  std::copy(args.positional.begin(), args.positional.end(), bound.begin());
  for (const auto& [name, value] : args.named) {
    const size_t at = std::find(names.begin(), names.end(), name->view) - names.begin();
    if (at == names.size()) {
      return Status::Invalid(
          fmt::format("{} takes no argument '{}'", what, name->view.substr(0, 50)));
    }
    if (bound[at]) return Status::Invalid(fmt::format("{} got '{}' twice", what, name->view));
    bound[at] = value;
  }
  for (size_t i = 0; i < num_required; ++i) {
    if (bound[i]) continue;
    return Status::Invalid(fmt::format("{} misses the argument '{}'", what, names.begin()[i]));
  }
  return bound;
}

Result<const Text*> StringArgument(const Value& v, std::string_view what) {
  if (v.IsUndefined()) return UndefinedError(v);
  if (v.IsString()) return v.text;
  return Status::Invalid(fmt::format("{} wants a string, found {}", what, KindName(v)));
}

Result<int64_t> IntArgument(const Value& v, std::string_view what) {
  if (v.IsUndefined()) return UndefinedError(v);
  if (v.IsInteger()) return v.AsInt();
  return Status::Invalid(fmt::format("{} wants an int, found {}", what, KindName(v)));
}

}  // namespace mm01::jinja
