#include "io/jinja/operators.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "io/jinja/methods.h"

namespace mm01::jinja {
namespace {

// Values that templates nest deeper than this compare as unequal: there is no shape of a request
// (at most kMaxNesting) that gets there.
constexpr int kMaxCompareDepth = 2 * kMaxNesting;

bool EqualAt(Runtime& rt, const Value& a, const Value& b, int depth);

bool EqualNumbers(const Value& a, const Value& b) {
  if (a.IsInteger() && b.IsInteger()) return a.AsInt() == b.AsInt();
  // The long double of the machines this runs on holds every int64_t and every double.
  const auto wide = [](const Value& v) {
    return v.IsInteger() ? static_cast<long double>(v.AsInt()) : static_cast<long double>(v.real);
  };
  return wide(a) == wide(b);
}

bool EqualSeqs(Runtime& rt, const Seq& a, const Seq& b, int depth) {
  if (&a == &b) return true;
  if (a.kind != b.kind || a.kind == SeqKind::kGenerator || a.kind == SeqKind::kValues) return false;
  if (a.items.size() != b.items.size()) return false;
  for (size_t i = 0; i < a.items.size(); ++i) {
    if (!EqualAt(rt, a.items[i], b.items[i], depth)) return false;
  }
  return true;
}

bool EqualDicts(Runtime& rt, const Dict& a, const Dict& b, int depth) {
  if (a.items.size() != b.items.size()) return false;
  for (const auto& [key, value] : a.items) {
    const Value* other = FindKey(rt, b, key);
    if (!other || !EqualAt(rt, value, *other, depth)) return false;
  }
  return true;
}

bool EqualAt(Runtime& rt, const Value& a, const Value& b, int depth) {
  if (!rt.budget.Items(1) || depth > kMaxCompareDepth) return false;
  if (a.IsNumber() && b.IsNumber()) return EqualNumbers(a, b);
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      return a.text->size() == b.text->size() && rt.budget.Bytes(a.text->size()) &&
             a.text->view == b.text->view;
    case Kind::kSeq:
      return EqualSeqs(rt, *a.seq, *b.seq, depth + 1);
    case Kind::kDict:
      return EqualDicts(rt, *a.dict, *b.dict, depth + 1);
    case Kind::kNamespace:
      return a.dict == b.dict;
    case Kind::kFunction:
      return a.function == b.function;
    case Kind::kMethod:
      return a.method->name == b.method->name &&
             EqualAt(rt, a.method->self, b.method->self, depth + 1);
    default:
      return a.loop == b.loop;  // or the closures: the same pointer
  }
}

Result<bool> LessAt(Runtime& rt, const Value& a, const Value& b, int depth) {
  rt.budget.Items(1);
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsInteger() && b.IsInteger()) return a.AsInt() < b.AsInt();
    const auto wide = [](const Value& v) {
      return v.IsInteger() ? static_cast<long double>(v.AsInt()) : static_cast<long double>(v.real);
    };
    return wide(a) < wide(b);
  }
  if (a.IsString() && b.IsString()) {
    // The order of UTF-8 bytes is the order of code points.
    rt.budget.Bytes(std::min(a.text->size(), b.text->size()));
    return a.text->view < b.text->view;
  }
  const bool sequences = a.kind == Kind::kSeq && b.kind == Kind::kSeq &&
                         a.seq->kind == b.seq->kind && a.seq->kind <= SeqKind::kTuple;
  if (!sequences || depth > kMaxCompareDepth) {
    for (const Value* v : {&a, &b}) {
      if (v->IsUndefined()) return UndefinedError(*v);
    }
    return Status::Invalid(fmt::format("{} and {} have no order", KindName(a), KindName(b)));
  }
  const size_t n = std::min(a.seq->items.size(), b.seq->items.size());
  for (size_t i = 0; i < n; ++i) {
    if (!EqualAt(rt, a.seq->items[i], b.seq->items[i], depth + 1)) {
      return LessAt(rt, a.seq->items[i], b.seq->items[i], depth + 1);
    }
    if (rt.budget.spent()) return false;
  }
  return a.seq->items.size() < b.seq->items.size();
}

}  // namespace

bool Truth(const Value& v) {
  switch (v.kind) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
      return v.boolean;
    case Kind::kInt:
      return v.integer != 0;
    case Kind::kFloat:
      return v.real != 0;
    case Kind::kString:
      return v.text->size() > 0;
    case Kind::kSeq:
      return v.seq->kind == SeqKind::kGenerator || !v.seq->items.empty();
    case Kind::kDict:
      return !v.dict->items.empty();
    default:
      return true;
  }
}

bool Equal(Runtime& rt, const Value& a, const Value& b) {
  return EqualAt(rt, a, b, 0);
}

Result<bool> Less(Runtime& rt, const Value& a, const Value& b) {
  return LessAt(rt, a, b, 0);
}

Result<bool> Compare(Runtime& rt, std::string_view op, const Value& a, const Value& b) {
  if (op == "==") return Equal(rt, a, b);
  if (op == "!=") return !Equal(rt, a, b);
  if (op == "<") return Less(rt, a, b);
  if (op == ">") return Less(rt, b, a);
  if (op == "in") return Contains(rt, b, a);
  if (op == "not in") {
    MM01_ASSIGN_OR_RETURN(const bool found, Contains(rt, b, a));
    return !found;
  }
  // a <= b is not "not b < a" for NaN.
  MM01_ASSIGN_OR_RETURN(const bool less, op == "<=" ? Less(rt, a, b) : Less(rt, b, a));
  return less || Equal(rt, a, b);
}

Result<bool> Contains(Runtime& rt, const Value& container, const Value& item) {
  if (container.IsUndefined()) return false;
  if (container.IsString()) {
    if (!item.IsString()) {
      return Status::Invalid(
          fmt::format("'in' wants a string to look for, found {}", KindName(item)));
    }
    rt.budget.Bytes(container.text->size());
    return Find(container.text->view, item.text->view) != std::string_view::npos;
  }
  if (container.kind == Kind::kDict) {
    if (!Hashable(item)) {
      return Status::Invalid(fmt::format("{} cannot be a key of a dict", KindName(item)));
    }
    return FindKey(rt, *container.dict, item) != nullptr;
  }
  MM01_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(rt, container));
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& v) { return Equal(rt, v, item); });
}

bool Hashable(const Value& key) {
  if (key.kind == Kind::kDict) return false;
  if (key.kind != Kind::kSeq) return true;
  if (key.seq->kind != SeqKind::kTuple) {
    return key.seq->kind == SeqKind::kRange || key.seq->kind == SeqKind::kGenerator;
  }
  // A tuple as a key is rare, a tuple of tuples rarer: those are refused with the lists.
  return std::none_of(key.seq->items.begin(), key.seq->items.end(),
                      [](const Value& v) { return v.kind == Kind::kDict || v.kind == Kind::kSeq; });
}

const Value* FindKey(Runtime& rt, const Dict& dict, const Value& key) {
  rt.budget.Items(dict.items.size() / 4);
  for (const auto& [k, v] : dict.items) {
    if (k.IsString() && key.IsString() ? k.text->view == key.text->view : Equal(rt, k, key)) {
      return &v;
    }
  }
  return nullptr;
}

void SetKey(Runtime& rt, Dict& dict, const Value& key, const Value& value) {
  if (const Value* old = FindKey(rt, dict, key)) {
    *const_cast<Value*>(old) = value;
  } else {
    dict.items.emplace_back(key, value);
  }
}

Result<Value> GetItem(Runtime& rt, const Value& v, const Value& key) {
  if (v.IsUndefined()) return UndefinedError(v);
  if ((v.kind == Kind::kDict) && Hashable(key)) {
    if (const Value* found = FindKey(rt, *v.dict, key)) return *found;
  }
  const bool indexed = v.kind == Kind::kSeq && v.seq->kind <= SeqKind::kRange;
  if (key.IsInteger() && (indexed || v.IsString())) {
    MM01_ASSIGN_OR_RETURN(const int64_t size, Length(v));
    int64_t index = key.AsInt();
    if (v.IsString()) rt.budget.Bytes(v.text->size());
    if (index < 0) index += size;
    if (index < 0 || index >= size) return Value::Undefined(nullptr);
    if (indexed) return v.seq->items[index];
    const size_t begin = OffsetOf(v.text->view, index);
    return rt.Slice(*v.text, begin, OffsetOf(v.text->view.substr(begin), 1) + begin);
  }
  if (!key.IsString()) return Value::Undefined(nullptr);
  return MethodOrUndefined(rt, v, *key.text);
}

Result<Value> GetAttribute(Runtime& rt, const Value& v, const Text& name) {
  if (v.IsUndefined()) return UndefinedError(v);
  MM01_ASSIGN_OR_RETURN(Value found, MethodOrUndefined(rt, v, name));
  if (!found.IsUndefined() || v.kind != Kind::kDict) return found;
  const Value* item = FindKey(rt, *v.dict, Value::String(&name));
  return item ? *item : found;
}

Result<Value> GetSlice(Runtime& rt, const Value& v, const Value& start_value,
                       const Value& stop_value, const Value& step_value) {
  const bool indexed = v.kind == Kind::kSeq && v.seq->kind <= SeqKind::kTuple;
  if (v.IsUndefined()) return UndefinedError(v);
  if (!indexed && !v.IsString()) {
    return Status::Unsupported(fmt::format("a slice of {} is not supported", KindName(v)));
  }
  for (const Value* bound : {&start_value, &stop_value, &step_value}) {
    if (!bound->IsNone() && !bound->IsInteger()) {
      return Status::Invalid(fmt::format("a slice wants ints, found {}", KindName(*bound)));
    }
  }
  MM01_ASSIGN_OR_RETURN(const int64_t size, Length(v));
  const int64_t step = step_value.IsNone() ? 1 : step_value.AsInt();
  if (step == 0) return Status::Invalid("the step of a slice is 0");
  // As CPython's PySlice_AdjustIndices.
  const auto bound = [&](const Value& value, int64_t otherwise) {
    if (value.IsNone()) return otherwise;
    const int64_t i = value.AsInt();
    if (i < 0) return i < -size ? (step < 0 ? -1 : int64_t{0}) : i + size;
    return i >= size ? (step < 0 ? size - 1 : size) : i;
  };
  const int64_t start = bound(start_value, step < 0 ? size - 1 : 0);
  const int64_t stop = bound(stop_value, step < 0 ? -1 : size);
  if (v.IsString() && step == 1) {
    rt.budget.Bytes(v.text->size());
    const size_t begin = OffsetOf(v.text->view, start);
    return rt.Slice(*v.text, begin, std::max(begin, OffsetOf(v.text->view, std::max(start, stop))));
  }
  std::vector<size_t> offsets;  // of code points
  if (v.IsString()) {
    rt.budget.Bytes(8 * v.text->size());
    if (rt.budget.spent()) return v;
    for (size_t at = 0; at < v.text->size(); at += OffsetOf(v.text->view.substr(at), 1)) {
      offsets.push_back(at);
    }
    offsets.push_back(v.text->size());
  }
  TextBuilder builder(rt.budget);
  std::vector<Value> items;
  for (int64_t i = start; step < 0 ? i > stop : i < stop;) {
    if (v.IsString()) {
      builder.Append(*v.text, offsets[i], offsets[i + 1]);
    } else {
      items.push_back(v.seq->items[i]);
    }
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  if (v.IsString()) return rt.Built(std::move(builder));
  return rt.NewSeq(v.seq->kind, std::move(items));
}

Result<std::vector<Value>> Iterate(Runtime& rt, const Value& v) {
  std::vector<Value> items;
  switch (v.kind) {
    case Kind::kUndefined:
      return items;
    case Kind::kSeq:
      rt.budget.Items(v.seq->items.size());
      if (rt.budget.spent() || v.seq->consumed) return items;
      v.seq->consumed = v.seq->kind == SeqKind::kGenerator;
      return v.seq->items;
    case Kind::kDict:
      rt.budget.Items(v.dict->items.size());
      for (const auto& [key, value] : v.dict->items) items.push_back(key);
      return items;
    case Kind::kString: {
      const std::string_view s = v.text->view;
      if (CountCodePoints(s) > static_cast<size_t>(kMaxItems)) {
        return Status::TooLarge(fmt::format("a walk over more than {} characters", kMaxItems));
      }
      for (size_t at = 0; at < s.size() && !rt.budget.spent();) {
        const size_t n = OffsetOf(s.substr(at), 1);
        items.push_back(rt.Slice(*v.text, at, at + n));
        rt.budget.Items(1);
        at += n;
      }
      return items;
    }
    default:
      return Status::Invalid(fmt::format("{} cannot be walked over", KindName(v)));
  }
}

Result<int64_t> Length(const Value& v) {
  switch (v.kind) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return static_cast<int64_t>(CountCodePoints(v.text->view));
    case Kind::kDict:
      return static_cast<int64_t>(v.dict->items.size());
    case Kind::kSeq:
      if (v.seq->kind != SeqKind::kGenerator) return static_cast<int64_t>(v.seq->items.size());
      [[fallthrough]];
    default:
      return Status::Invalid(fmt::format("{} has no length", KindName(v)));
  }
}

}  // namespace mm01::jinja
