#include "io/jinja/filters.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <list>
#include <map>

#include "io/jinja/format.h"
#include "io/jinja/methods.h"
#include "io/jinja/operators.h"
#include "io/jinja/strings.h"

namespace mm01::jinja {
namespace {

using Filter = Result<Value> (*)(Runtime&, const Value&, const Arguments&);

// What most text filters do first: the value as a string, which undefined is too.
Result<const Text*> AsText(Runtime& rt, const Value& v) {
  MM01_ASSIGN_OR_RETURN(const Value string, ToString(rt, v));
  return string.text;
}

// item.a.b for the attribute "a.b", numbers being indices.
Result<Value> Attribute(Runtime& rt, Value item, const Value& path, const Value* otherwise) {
  if (path.IsNone()) return item;
  std::vector<Value> parts = {path};
  if (path.IsString()) {
    Text dot;
    Borrow(".", true, dot);
    MM01_ASSIGN_OR_RETURN(const Value split, Split(rt, *path.text, &dot, -1, false));
    parts = split.seq->items;
  }
  for (const Value& part : parts) {
    bool overflow = false;
    Value key = part;
    if (part.IsString() && part.text->size() > 0 &&
        part.text->view.find_first_not_of("0123456789") == std::string_view::npos) {
      key = Value::Int(ParseInt(part.text->view, 10, &overflow).value_or(0));
    }
    if (overflow) return Status::Invalid("the index of an attribute does not fit 64 bits");
    MM01_ASSIGN_OR_RETURN(item, GetItem(rt, item, key));
    if (otherwise && item.IsUndefined()) item = *otherwise;
  }
  return item;
}

Result<Value> ToJsonFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(
      const auto bound,
      Bind(args, "tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}, 0));
  JsonStyle style;
  style.ensure_ascii = bound[0] && Truth(*bound[0]);
  style.sort_keys = bound[3] && Truth(*bound[3]);
  if (bound[1] && bound[1]->IsString()) {
    style.indent = std::string(bound[1]->text->view);
  } else if (bound[1] && !bound[1]->IsNone()) {
    MM01_ASSIGN_OR_RETURN(const int64_t width, IntArgument(*bound[1], "tojson indent"));
    if (width > 1000) {
      return Status::TooLarge(fmt::format("tojson with an indent of {}, at most 1000", width));
    }
    style.indent = std::string(std::max<int64_t>(width, 0), ' ');
  }
  if (style.indent) style.item_separator = ",";
  if (bound[2] && !bound[2]->IsNone()) {
    MM01_ASSIGN_OR_RETURN(const std::vector<Value> pair, Iterate(rt, *bound[2]));
    if (pair.size() != 2 || !pair[0].IsString() || !pair[1].IsString()) {
      return Status::Invalid("tojson wants two strings as separators");
    }
    style.item_separator = pair[0].text->view;
    style.key_separator = pair[1].text->view;
  }
  return ToJsonText(rt, v, style);
}

Result<Value> LengthFilter(Runtime&, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, "length", {}, 0));
  MM01_ASSIGN_OR_RETURN(const int64_t length, Length(v));
  return Value::Int(length, !v.IsString() || v.text->AllTrusted());
}

Result<Value> JoinFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "join", {"d", "attribute"}, 0));
  MM01_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(rt, v));
  if (bound[1] && !bound[1]->IsNone()) {
    for (Value& item : items) {
      MM01_ASSIGN_OR_RETURN(item, Attribute(rt, item, *bound[1], nullptr));
    }
  }
  MM01_ASSIGN_OR_RETURN(const Text* separator,
                        AsText(rt, bound[0].value_or(Value::Undefined(nullptr))));
  return Join(rt, items, *separator);
}

Result<Value> TrimFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "trim", {"chars"}, 0));
  MM01_ASSIGN_OR_RETURN(const Text* text, AsText(rt, v));
  const Text* chars = nullptr;
  if (bound[0] && !bound[0]->IsNone()) {
    MM01_ASSIGN_OR_RETURN(chars, StringArgument(*bound[0], "trim"));
  }
  return Strip(rt, *text, chars, true, true);
}

template <Case kTo>
Result<Value> CaseFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, "a filter for letters", {}, 0));
  MM01_ASSIGN_OR_RETURN(const Text* text, AsText(rt, v));
  return kTo == Case::kTitle ? TitleWords(rt, *text) : ChangeCase(rt, *text, kTo);
}

Result<Value> DefaultFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "default", {"default_value", "boolean"}, 0));
  const bool by_truth = bound[1] && Truth(*bound[1]);
  if (!v.IsUndefined() && !(by_truth && !Truth(v))) return v;
  return bound[0].value_or(rt.Borrowed("", true));
}

Result<Value> FirstFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, "first", {}, 0));
  if (v.IsString()) {
    const std::string_view s = v.text->view;
    return s.empty() ? Value::Undefined(nullptr) : rt.Slice(*v.text, 0, OffsetOf(s, 1));
  }
  if (v.kind == Kind::kSeq && v.seq->kind == SeqKind::kGenerator) {
    // Takes one item and leaves the others.
    if (v.seq->consumed || v.seq->items.empty()) return Value::Undefined(nullptr);
    const Value first = v.seq->items.front();
    rt.budget.Items(v.seq->items.size());
    v.seq->items.erase(v.seq->items.begin());
    return first;
  }
  MM01_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(rt, v));
  return items.empty() ? Value::Undefined(nullptr) : items.front();
}

Result<Value> LastFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, "last", {}, 0));
  if (v.kind == Kind::kSeq && v.seq->kind == SeqKind::kGenerator) {
    return Status::Invalid("a generator has no last item; put '| list' before '| last'");
  }
  if (v.IsString()) {
    const std::string_view s = v.text->view;
    size_t begin = s.size();
    while (begin > 0 && (s[--begin] & 0xc0) == 0x80) {
    }
    return s.empty() ? Value::Undefined(nullptr) : rt.Slice(*v.text, begin, s.size());
  }
  MM01_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(rt, v));
  return items.empty() ? Value::Undefined(nullptr) : items.back();
}

Result<Value> ListFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, "list", {}, 0));
  MM01_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(rt, v));
  return rt.NewSeq(SeqKind::kList, std::move(items));
}

Result<Value> StringFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, "string", {}, 0));
  return ToString(rt, v);
}

Result<Value> TruncatedInt(double f, bool trusted, const Value& otherwise) {
  if (!std::isfinite(f)) return otherwise;
  if (std::abs(f) >= 0x1p63) return Status::Unsupported("an int that does not fit 64 bits");
  return Value::Int(static_cast<int64_t>(f), trusted);
}

Result<Value> IntFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "int", {"default", "base"}, 0));
  const Value otherwise = bound[0].value_or(Value::Int(0));
  int64_t base = 10;
  if (bound[1]) {
    MM01_ASSIGN_OR_RETURN(base, IntArgument(*bound[1], "int base"));
  }
  if (base < 2 || base > 36 || (base != 10 && v.IsString() && v.text->size() > 1)) {
    return Status::Unsupported(fmt::format("int with base {} is not supported", base));
  }
  if (v.IsUndefined()) return UndefinedError(v);
  if (v.IsInteger()) return Value::Int(v.AsInt(), v.trusted);
  if (v.kind == Kind::kFloat) return TruncatedInt(v.real, v.trusted, otherwise);
  if (!v.IsString()) return otherwise;
  rt.budget.Bytes(v.text->size());
  bool overflow = false;
  if (const auto i = ParseInt(v.text->view, base, &overflow)) {
    if (overflow) return Status::Unsupported("an int that does not fit 64 bits");
    return Value::Int(*i, v.text->AllTrusted());
  }
  const auto f = ParseFloat(v.text->view);
  return f ? TruncatedInt(*f, v.text->AllTrusted(), otherwise) : otherwise;
}

Result<Value> FloatFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "float", {"default"}, 0));
  const Value otherwise = bound[0].value_or(Value::Float(0));
  if (v.IsUndefined()) return UndefinedError(v);
  if (v.IsNumber()) return Value::Float(v.AsDouble(), v.trusted);
  if (!v.IsString()) return otherwise;
  rt.budget.Bytes(v.text->size());
  const auto f = ParseFloat(v.text->view);
  return f ? Value::Float(*f, v.text->AllTrusted()) : otherwise;
}

Result<Value> ReplaceFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "replace", {"old", "new", "count"}, 2));
  MM01_ASSIGN_OR_RETURN(const Text* text, AsText(rt, v));
  MM01_ASSIGN_OR_RETURN(const Text* from, AsText(rt, *bound[0]));
  MM01_ASSIGN_OR_RETURN(const Text* to, AsText(rt, *bound[1]));
  int64_t count = -1;
  if (bound[2] && !bound[2]->IsNone()) {
    MM01_ASSIGN_OR_RETURN(count, IntArgument(*bound[2], "replace"));
  }
  return Replace(rt, *text, *from, *to, count);
}

// select, reject, selectattr, rejectattr: the arguments are [attribute,] [test, its arguments].
template <bool kKeep, bool kByAttribute>
Result<Value> SelectFilter(Runtime& rt, const Value& v, const Arguments& args) {
  if (!Truth(v)) return rt.NewSeq(SeqKind::kGenerator, {});
  constexpr size_t kOffset = kByAttribute ? 1 : 0;
  if (args.positional.size() < kOffset) {
    return Status::Invalid("selectattr and rejectattr want the name of an attribute");
  }
  std::string_view test;
  Arguments test_args{{}, args.named};
  if (args.positional.size() > kOffset) {
    MM01_ASSIGN_OR_RETURN(const Text* name,
                          StringArgument(args.positional[kOffset], "the name of a test"));
    test = name->view;
    test_args.positional.assign(args.positional.begin() + kOffset + 1, args.positional.end());
  }
  MM01_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(rt, v));
  std::vector<Value> kept;
  for (const Value& item : items) {
    Value tested = item;
    if (kByAttribute) {
      MM01_ASSIGN_OR_RETURN(tested, Attribute(rt, item, args.positional[0], nullptr));
    }
    bool good = Truth(tested);
    if (args.positional.size() > kOffset) {
      MM01_ASSIGN_OR_RETURN(good, ApplyTest(rt, test, tested, test_args));
    }
    if (good == kKeep) kept.push_back(item);
    if (rt.budget.spent()) break;
  }
  return rt.NewSeq(SeqKind::kGenerator, std::move(kept));
}

Result<Value> MapByAttribute(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "map", {"attribute", "default"}, 1));
  const Value* otherwise = bound[1] && !bound[1]->IsNone() ? &*bound[1] : nullptr;
  MM01_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(rt, v));
  for (Value& item : items) {
    MM01_ASSIGN_OR_RETURN(item, Attribute(rt, item, *bound[0], otherwise));
    if (rt.budget.spent()) break;
  }
  return rt.NewSeq(SeqKind::kGenerator, std::move(items));
}

Result<Value> MapFilter(Runtime& rt, const Value& v, const Arguments& args) {
  if (!Truth(v)) return rt.NewSeq(SeqKind::kGenerator, {});
  if (args.positional.empty() && !args.named.empty()) return MapByAttribute(rt, v, args);
  if (args.positional.empty()) return Status::Invalid("map wants a filter or an attribute");
  MM01_ASSIGN_OR_RETURN(const Text* name, StringArgument(args.positional[0], "map"));
  const Arguments rest{{args.positional.begin() + 1, args.positional.end()}, args.named};
  MM01_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(rt, v));
  for (Value& item : items) {
    MM01_ASSIGN_OR_RETURN(item, ApplyFilter(rt, name->view, item, rest));
    if (rt.budget.spent()) break;
  }
  return rt.NewSeq(SeqKind::kGenerator, std::move(items));
}

Result<Value> ItemsFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, "items", {}, 0));
  if (v.IsUndefined()) return rt.NewSeq(SeqKind::kGenerator, {});
  if (v.kind != Kind::kDict) {
    return Status::Invalid(fmt::format("the filter 'items' wants a dict, found {}", KindName(v)));
  }
  MM01_ASSIGN_OR_RETURN(const Value items, CallMethod(rt, Method{v, "items"}, {}));
  items.seq->kind = SeqKind::kGenerator;
  return items;
}

Result<Value> SafeFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, "safe", {}, 0));
  MM01_ASSIGN_OR_RETURN(const Value string, ToString(rt, v));
  return MarkSafe(rt, string);
}

Result<Value> IndentFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "indent", {"width", "first", "blank"}, 0));
  MM01_ASSIGN_OR_RETURN(const Text* text, StringArgument(v, "indent"));
  Text indention;
  if (bound[0] && bound[0]->IsString()) {
    const Text& given = *bound[0]->text;
    Borrow(given.view, given.AllTrusted(), indention);
  } else {
    int64_t width = 4;
    if (bound[0]) {
      MM01_ASSIGN_OR_RETURN(width, IntArgument(*bound[0], "indent"));
    }
    if (width > 1000) {
      return Status::TooLarge(fmt::format("an indent of {} characters, at most 1000", width));
    }
    indention.owned.assign(std::max<int64_t>(width, 0), ' ');
    Borrow(indention.owned, true, indention);
  }
  return Indent(rt, *text, indention, bound[1] && Truth(*bound[1]), bound[2] && Truth(*bound[2]));
}

Result<Value> ReverseFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, "reverse", {}, 0));
  if (v.IsString()) return Reverse(rt, *v.text);
  const bool is_generator = v.kind == Kind::kSeq && v.seq->kind == SeqKind::kGenerator;
  MM01_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(rt, v));
  std::reverse(items.begin(), items.end());
  return rt.NewSeq(is_generator ? SeqKind::kList : SeqKind::kGenerator, std::move(items));
}

// Sorts `items` by `keys` of the same size, strings without regard to case unless `case_sensitive`.
Result<Value> SortBy(Runtime& rt, const std::vector<Value>& items, std::vector<Value> keys,
                     bool case_sensitive, bool descending) {
  // The sort of a list is stable, and safe where NaN or an error breaks the order.
  std::list<size_t> order;
  for (size_t i = 0; i < items.size(); ++i) {
    order.push_back(i);
    if (case_sensitive || !keys[i].IsString()) continue;
    MM01_ASSIGN_OR_RETURN(keys[i], ChangeCase(rt, *keys[i].text, Case::kLower));
  }
  Status error;
  order.sort([&](size_t a, size_t b) {
    if (!error.ok() || rt.budget.spent()) return false;
    if (descending) std::swap(a, b);
    if (Equal(rt, keys[a], keys[b])) return false;
    const Result<bool> less = Less(rt, keys[a], keys[b]);
    if (less.ok()) return less.value();
    error = less.status();
    return false;
  });
  MM01_RETURN_IF_ERROR(error);
  std::vector<Value> sorted;
  for (const size_t i : order) sorted.push_back(items[i]);
  return rt.NewSeq(SeqKind::kList, std::move(sorted));
}

Result<Value> SortFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound,
                        Bind(args, "sort", {"reverse", "case_sensitive", "attribute"}, 0));
  const Value path = bound[2].value_or(Value::None());
  if (path.IsString() && path.text->view.find(',') != std::string_view::npos) {
    return Status::Unsupported("sort by several attributes is not supported");
  }
  MM01_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(rt, v));
  std::vector<Value> keys = items;
  for (Value& key : keys) {
    MM01_ASSIGN_OR_RETURN(key, Attribute(rt, key, path, nullptr));
  }
  return SortBy(rt, items, std::move(keys), bound[1] && Truth(*bound[1]),
                bound[0] && Truth(*bound[0]));
}

Result<Value> DictSortFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto bound,
                        Bind(args, "dictsort", {"case_sensitive", "by", "reverse"}, 0));
  if (v.kind != Kind::kDict) {
    return Status::Invalid(fmt::format("dictsort wants a dict, found {}", KindName(v)));
  }
  const bool by_value = bound[1] && bound[1]->IsString() && bound[1]->text->view == "value";
  std::vector<Value> items, keys;
  for (const auto& [key, value] : v.dict->items) {
    items.push_back(rt.NewSeq(SeqKind::kTuple, {key, value}));
    keys.push_back(by_value ? value : key);
  }
  return SortBy(rt, items, std::move(keys), bound[0] && Truth(*bound[0]),
                bound[2] && Truth(*bound[2]));
}

Result<Value> AbsFilter(Runtime& rt, const Value& v, const Arguments& args) {
  MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, "abs", {}, 0));
  if (v.kind == Kind::kFloat) return Value::Float(std::abs(v.real), v.trusted);
  MM01_ASSIGN_OR_RETURN(const bool negative, Less(rt, v, Value::Int(0)));
  return negative ? Negate(v) : Value::Int(v.AsInt(), v.trusted);
}

const std::map<std::string_view, Filter>& Filters() {
  static const std::map<std::string_view, Filter> filters = {
      {"abs", AbsFilter},
      {"capitalize", CaseFilter<Case::kCapitalize>},
      {"count", LengthFilter},
      {"d", DefaultFilter},
      {"default", DefaultFilter},
      {"dictsort", DictSortFilter},
      {"first", FirstFilter},
      {"float", FloatFilter},
      {"indent", IndentFilter},
      {"int", IntFilter},
      {"items", ItemsFilter},
      {"join", JoinFilter},
      {"last", LastFilter},
      {"length", LengthFilter},
      {"list", ListFilter},
      {"lower", CaseFilter<Case::kLower>},
      {"map", MapFilter},
      {"reject", SelectFilter<false, false>},
      {"rejectattr", SelectFilter<false, true>},
      {"replace", ReplaceFilter},
      {"reverse", ReverseFilter},
      {"safe", SafeFilter},
      {"select", SelectFilter<true, false>},
      {"selectattr", SelectFilter<true, true>},
      {"sort", SortFilter},
      {"string", StringFilter},
      {"title", CaseFilter<Case::kTitle>},
      {"tojson", ToJsonFilter},
      {"trim", TrimFilter},
      {"upper", CaseFilter<Case::kUpper>},
  };
  return filters;
}

// Filters that give a string marked safe another text would have to mark that safe too.
bool TakesMarkup(std::string_view name) {
  static constexpr std::string_view kNames[] = {"count", "d",      "default", "float",
                                                "int",   "length", "list",    "replace",
                                                "safe",  "string", "tojson"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

}  // namespace

bool HasFilter(std::string_view name) {
  return Filters().contains(name);
}

Result<Value> ApplyFilter(Runtime& rt, std::string_view name, const Value& v,
                          const Arguments& args) {
  const DepthGuard depth(rt);
  if (!depth.ok()) return Status::TooLarge("filters call filters too deep");
  const auto filter = Filters().find(name);
  if (filter == Filters().end()) {
    return Status::Unsupported(fmt::format("the filter '{}' is not supported", name.substr(0, 50)));
  }
  if (v.IsString() && v.text->markup && !TakesMarkup(name)) {
    return Status::Unsupported(
        fmt::format("the filter '{}' on a string marked safe is not supported", name));
  }
  return filter->second(rt, v, args);
}

}  // namespace mm01::jinja
