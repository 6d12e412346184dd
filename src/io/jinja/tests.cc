// The tests of Jinja2 that are supported.
#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "io/jinja/filters.h"
#include "io/jinja/operators.h"

namespace mm01::jinja {
namespace {

bool IsSequence(const Value& v) {
  return v.IsUndefined() || v.IsString() || v.kind == Kind::kDict ||
         (v.kind == Kind::kSeq && v.seq->kind <= SeqKind::kRange);
}

// Tests that look at the kind alone.
const std::map<std::string_view, bool (*)(const Value&)>& KindTests() {
  static const std::map<std::string_view, bool (*)(const Value&)> tests = {
      {"defined", [](const Value& v) { return !v.IsUndefined(); }},
      {"undefined", [](const Value& v) { return v.IsUndefined(); }},
      {"none", [](const Value& v) { return v.IsNone(); }},
      {"string", [](const Value& v) { return v.IsString(); }},
      {"mapping", [](const Value& v) { return v.kind == Kind::kDict; }},
      {"sequence", IsSequence},
      {"iterable",
       [](const Value& v) {
         return IsSequence(v) || v.kind == Kind::kSeq || v.kind == Kind::kLoop;
       }},
      {"number", [](const Value& v) { return v.IsNumber(); }},
      {"integer", [](const Value& v) { return v.kind == Kind::kInt; }},
      {"float", [](const Value& v) { return v.kind == Kind::kFloat; }},
      {"boolean", [](const Value& v) { return v.kind == Kind::kBool; }},
      {"true", [](const Value& v) { return v.kind == Kind::kBool && v.boolean; }},
      {"false", [](const Value& v) { return v.kind == Kind::kBool && !v.boolean; }},
      {"callable", [](const Value& v) { return v.kind >= Kind::kMacro; }},
  };
  return tests;
}

// Tests that compare with their argument, as operators.
const std::map<std::string_view, std::string_view>& Comparisons() {
  static const std::map<std::string_view, std::string_view> ops = {
      {"eq", "=="}, {"equalto", "=="}, {"ne", "!="},         {"lt", "<"},
      {"==", "=="}, {"!=", "!="},      {"<", "<"},           {"<=", "<="},
      {">", ">"},   {">=", ">="},      {"lessthan", "<"},    {"le", "<="},
      {"gt", ">"},  {"ge", ">="},      {"greaterthan", ">"}, {"in", "in"},
  };
  return ops;
}

bool IsRemainderTest(std::string_view name) {
  return name == "odd" || name == "even" || name == "divisibleby";
}

Result<bool> Remainder(Runtime& rt, std::string_view name, const Value& v, const Arguments& args) {
  Value divisor = Value::Int(2);
  if (name == "divisibleby") {
    MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, name, {"num"}, 1));
    divisor = *bound[0];
  } else {
    MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, name, {}, 0));
  }
  MM01_ASSIGN_OR_RETURN(const Value rest, Arithmetic(rt, "%", v, divisor));
  return Equal(rt, rest, Value::Int(name == "odd" ? 1 : 0));
}

}  // namespace

bool HasTest(std::string_view name) {
  return KindTests().contains(name) || Comparisons().contains(name) || IsRemainderTest(name);
}

Result<bool> ApplyTest(Runtime& rt, std::string_view name, const Value& v, const Arguments& args) {
  if (const auto test = KindTests().find(name); test != KindTests().end()) {
    MM01_ASSIGN_OR_RETURN(const auto none, Bind(args, name, {}, 0));
    return test->second(v);
  }
  if (IsRemainderTest(name)) return Remainder(rt, name, v, args);
  const auto op = Comparisons().find(name);
  if (op == Comparisons().end()) {
    return Status::Unsupported(fmt::format("the test '{}' is not supported", name.substr(0, 50)));
  }
  MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, name, {"other"}, 1));
  return Compare(rt, op->second, v, *bound[0]);
}

}  // namespace mm01::jinja
