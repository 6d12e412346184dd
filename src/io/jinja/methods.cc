#include "io/jinja/methods.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "io/jinja/operators.h"
#include "io/jinja/strings.h"

namespace mm01::jinja {
namespace {

using Names = std::vector<std::string_view>;

bool Has(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

const Names& StringMethods() {
  static const Names names = {"strip",      "lstrip",       "rstrip",      "split", "rsplit",
                              "splitlines", "startswith",   "upper",       "lower", "title",
                              "endswith",   "replace",      "capitalize",  "join",  "find",
                              "count",      "removeprefix", "removesuffix"};
  return names;
}

const Names& DictMethods() {
  static const Names names = {"get", "items", "keys", "values"};
  return names;
}

// What Python has besides, so that its use is an error and not an undefined value.
const Names& OtherAttributes(const Value& v) {
  static const Names none;
  static const Names string = {
      "casefold", "center",    "encode",      "expandtabs",   "format",    "format_map",
      "index",    "isalnum",   "isalpha",     "isascii",      "isdecimal", "isdigit",
      "islower",  "isnumeric", "isprintable", "isidentifier", "isspace",   "istitle",
      "isupper",  "ljust",     "maketrans",   "partition",    "rfind",     "rindex",
      "rjust",    "swapcase",  "rpartition",  "translate",    "zfill"};
  static const Names dict = {"clear", "copy", "fromkeys", "pop", "popitem", "setdefault", "update"};
  static const Names list = {"append", "clear", "copy",   "count",   "extend", "index",
                             "insert", "pop",   "remove", "reverse", "sort"};
  static const Names sequence = {"count", "index", "start", "stop", "step"};
  static const Names number = {"real",       "imag",       "numerator", "denominator",
                               "bit_length", "is_integer", "conjugate", "as_integer_ratio",
                               "bit_count",  "to_bytes",   "hex"};
  switch (v.kind) {
    case Kind::kString:
      return string;
    case Kind::kDict:
      return dict;
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kFloat:
      return number;
    case Kind::kSeq:
      if (v.seq->kind == SeqKind::kList) return list;
      return v.seq->kind <= SeqKind::kRange ? sequence : none;
    default:
      return none;
  }
}

Result<Value> LoopAttribute(Runtime& rt, const Value& v, const Text& name) {
  const Loop& loop = *v.loop;
  const int64_t size = static_cast<int64_t>(loop.items.size());
  const int64_t index = static_cast<int64_t>(loop.index);
  if (name.view == "index") return Value::Int(index + 1);
  if (name.view == "index0") return Value::Int(index);
  if (name.view == "first") return Value::Bool(index == 0);
  if (name.view == "last") return Value::Bool(index + 1 == size);
  if (name.view == "length") return Value::Int(size);
  if (name.view == "revindex") return Value::Int(size - index);
  if (name.view == "revindex0") return Value::Int(size - index - 1);
  if (name.view == "depth") return Value::Int(1);
  if (name.view == "depth0") return Value::Int(0);
  if (name.view == "previtem") return index > 0 ? loop.items[index - 1] : Value::Undefined(&name);
  if (name.view == "nextitem") {
    return index + 1 < size ? loop.items[index + 1] : Value::Undefined(&name);
  }
  if (name.view == "cycle" || name.view == "changed") return rt.NewMethod(v, name.view);
  return Value::Undefined(&name);
}

Result<Value> CallLoop(Runtime& rt, Loop& loop, std::string_view name, const Arguments& args) {
  if (!args.named.empty() || (name == "cycle" && args.positional.empty())) {
    return Status::Invalid(fmt::format("loop.{} wants values without names", name));
  }
  if (name == "cycle") return args.positional[loop.index % args.positional.size()];
  const Value now = rt.NewSeq(SeqKind::kTuple, args.positional);
  if (loop.changed && Equal(rt, *loop.changed, now)) return Value::Bool(false);
  loop.changed = now;
  return Value::Bool(true);
}

Result<Value> CallDict(Runtime& rt, const Dict& dict, std::string_view name,
                       const Arguments& args) {
  if (name == "get") {
    MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "get", {"key", "default"}, 1));
    if (!Hashable(*bound[0])) {
      return Status::Invalid(fmt::format("{} cannot be a key of a dict", KindName(*bound[0])));
    }
    if (const Value* found = FindKey(rt, dict, *bound[0])) return *found;
    return bound[1].value_or(Value::None());
  }
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, name, {}, 0));
  std::vector<Value> items;
  for (const auto& [key, value] : dict.items) {
    if (name == "items") {
      items.push_back(rt.NewSeq(SeqKind::kTuple, {key, value}));
    } else {
      items.push_back(name == "keys" ? key : value);
    }
  }
  const SeqKind kind = name == "items"  ? SeqKind::kItems
                       : name == "keys" ? SeqKind::kKeys
                                        : SeqKind::kValues;
  return rt.NewSeq(kind, std::move(items));
}

// startswith and endswith: one string, or a tuple of them.
Result<Value> CallAffix(const Text& s, bool at_start, const Arguments& args) {
  const std::string_view what = at_start ? "startswith" : "endswith";
  if (args.positional.size() > 1) {
    return Status::Unsupported(fmt::format("{} with a range is not supported", what));
  }
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, what, {"prefix"}, 1));
  std::vector<Value> affixes = {*bound[0]};
  if (bound[0]->kind == Kind::kSeq && bound[0]->seq->kind == SeqKind::kTuple) {
    affixes = bound[0]->seq->items;
  }
  for (const Value& affix : affixes) {
    MM01_ASSIGN_OR_RETURN(const Text* text, StringArgument(affix, what));
    if (at_start ? s.view.starts_with(text->view) : s.view.ends_with(text->view)) {
      return Value::Bool(true);
    }
  }
  return Value::Bool(false);
}

Result<const Text*> OptionalString(const std::optional<Value>& v, std::string_view what) {
  if (!v || v->IsNone()) return static_cast<const Text*>(nullptr);
  return StringArgument(*v, what);
}

Result<Value> CallSplit(Runtime& rt, const Text& s, std::string_view name, const Arguments& args) {
  if (name == "splitlines") {
    MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, name, {"keepends"}, 0));
    return rt.NewSeq(SeqKind::kList, SplitLines(rt, s, bound[0] && Truth(*bound[0])));
  }
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, name, {"sep", "maxsplit"}, 0));
  MM01_ASSIGN_OR_RETURN(const Text* separator, OptionalString(bound[0], name));
  int64_t max_splits = -1;
  if (bound[1]) {
    MM01_ASSIGN_OR_RETURN(max_splits, IntArgument(*bound[1], name));
  }
  return Split(rt, s, separator, max_splits, name == "rsplit");
}

Result<Value> CallReplace(Runtime& rt, const Text& s, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "replace", {"old", "new", "count"}, 2));
  MM01_ASSIGN_OR_RETURN(const Text* from, StringArgument(*bound[0], "replace"));
  MM01_ASSIGN_OR_RETURN(const Text* to, StringArgument(*bound[1], "replace"));
  int64_t count = -1;
  if (bound[2]) {
    MM01_ASSIGN_OR_RETURN(count, IntArgument(*bound[2], "replace"));
  }
  return Replace(rt, s, *from, *to, count);
}

Result<Value> CallJoin(Runtime& rt, const Text& s, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "join", {"iterable"}, 1));
  MM01_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(rt, *bound[0]));
  for (const Value& item : items) {
    MM01_ASSIGN_OR_RETURN(const Text* text, StringArgument(item, "join"));
    if (text->markup) return Status::Unsupported("join of strings marked safe is not supported");
  }
  return Join(rt, items, s);
}

// find, count, removeprefix and removesuffix: one string to look for.
Result<Value> CallSearch(Runtime& rt, const Text& s, std::string_view name, const Arguments& args) {
  if (args.positional.size() > 1) {
    return Status::Unsupported(fmt::format("{} with a range is not supported", name));
  }
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, name, {"sub"}, 1));
  MM01_ASSIGN_OR_RETURN(const Text* sub, StringArgument(*bound[0], name));
  rt.budget.Bytes(s.size());
  if (name == "removeprefix") {
    return rt.Slice(s, s.view.starts_with(sub->view) ? sub->size() : 0, s.size());
  }
  if (name == "removesuffix") {
    return rt.Slice(s, 0, s.size() - (s.view.ends_with(sub->view) ? sub->size() : 0));
  }
  const bool trusted = s.AllTrusted();
  size_t hit = Find(s.view, sub->view);
  if (name == "find") {
    if (hit == std::string_view::npos) return Value::Int(-1, trusted);
    return Value::Int(static_cast<int64_t>(CountCodePoints(s.view.substr(0, hit))), trusted);
  }
  if (sub->size() == 0) {
    return Value::Int(static_cast<int64_t>(CountCodePoints(s.view)) + 1, trusted);
  }
  int64_t count = 0;
  for (; hit != std::string_view::npos; hit = Find(s.view, sub->view, hit + sub->size())) ++count;
  return Value::Int(count, trusted);
}

Result<Value> CallString(Runtime& rt, const Text& s, std::string_view name, const Arguments& args) {
  if (s.markup) {
    return Status::Unsupported(
        fmt::format("the method '{}' of a string marked safe is not supported", name));
  }
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, name, {"chars"}, 0));
    MM01_ASSIGN_OR_RETURN(const Text* chars, OptionalString(bound[0], name));
    return Strip(rt, s, chars, name != "rstrip", name != "lstrip");
  }
  if (name == "split" || name == "rsplit" || name == "splitlines") {
    return CallSplit(rt, s, name, args);
  }
  if (name == "startswith" || name == "endswith") return CallAffix(s, name == "startswith", args);
  if (name == "replace") return CallReplace(rt, s, args);
  if (name == "join") return CallJoin(rt, s, args);
  if (name == "find" || name == "count" || name == "removeprefix" || name == "removesuffix") {
    return CallSearch(rt, s, name, args);
  }
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, name, {}, 0));
  return ChangeCase(rt, s,
                    name == "upper"   ? Case::kUpper
                    : name == "lower" ? Case::kLower
                    : name == "title" ? Case::kTitle
                                      : Case::kCapitalize);
}

}  // namespace

Result<Value> MethodOrUndefined(Runtime& rt, const Value& v, const Text& name) {
  if (v.kind == Kind::kLoop) return LoopAttribute(rt, v, name);
  if (v.kind == Kind::kNamespace) {
    const Value* found = FindKey(rt, *v.dict, Value::String(&name));
    return found ? *found : Value::Undefined(&name);
  }
  if (v.IsString() && Has(StringMethods(), name.view)) return rt.NewMethod(v, name.view);
  if (v.kind == Kind::kDict && Has(DictMethods(), name.view)) return rt.NewMethod(v, name.view);
  const bool is_callable = v.kind >= Kind::kMacro;
  if (is_callable || Has(OtherAttributes(v), name.view) || name.view.starts_with("__")) {
    return Status::Unsupported(fmt::format("the attribute '{}' of {} is not supported",
                                           name.view.substr(0, 50), KindName(v)));
  }
  return Value::Undefined(&name);
}

Result<Value> CallMethod(Runtime& rt, const Method& method, const Arguments& args) {
  switch (method.self.kind) {
    case Kind::kString:
      return CallString(rt, *method.self.text, method.name, args);
    case Kind::kDict:
      return CallDict(rt, *method.self.dict, method.name, args);
    case Kind::kLoop:
      return CallLoop(rt, *method.self.loop, method.name, args);
    default:
      Fail("a method of a value that has none");
  }
}

}  // namespace mm01::jinja
