#include <fmt/core.h>

#include <algorithm>

#include "io/jinja/evaluator.h"
#include "io/jinja/filters.h"
#include "io/jinja/format.h"
#include "io/jinja/operators.h"

namespace mm01::jinja {

Result<Value> Evaluator::Eval(const Expr& expr) {
  const DepthGuard depth(rt_);
  MM01_RETURN_IF_ERROR(Step(expr.line, depth));
  switch (expr.kind) {
    case ExprKind::kConst:
      return expr.value;
    case ExprKind::kName:
      return Lookup(expr.text);
    case ExprKind::kList:
    case ExprKind::kTuple:
      return EvalItems(expr);
    case ExprKind::kDict:
      return EvalDict(expr);
    case ExprKind::kBinary:
    case ExprKind::kConcat:
    case ExprKind::kCompare:
      return EvalChainOfOperators(expr);
    case ExprKind::kAnd:
    case ExprKind::kOr:
      return EvalLogic(expr);
    case ExprKind::kNot:
    case ExprKind::kNegate:
    case ExprKind::kPlus:
      return EvalUnary(expr);
    case ExprKind::kCond: {
      MM01_ASSIGN_OR_RETURN(const Value condition, Eval(*expr.args[0]));
      if (Truth(condition)) return Eval(*expr.args[1]);
      return expr.args[2] ? Eval(*expr.args[2]) : Value::Undefined(nullptr);
    }
    case ExprKind::kChain:
      return EvalChain(expr);
    case ExprKind::kSlice:
    case ExprKind::kNamespaceRef:
      break;
  }
  Fail("an expression of no kind");
}

Result<std::vector<Value>> Evaluator::EvalAll(const std::vector<ExprPtr>& exprs) {
  std::vector<Value> values;
  values.reserve(exprs.size());
  for (const ExprPtr& expr : exprs) {
    MM01_ASSIGN_OR_RETURN(const Value v, Eval(*expr));
    values.push_back(v);
  }
  return values;
}

Result<Value> Evaluator::EvalItems(const Expr& expr) {
  MM01_ASSIGN_OR_RETURN(std::vector<Value> items, EvalAll(expr.args));
  return rt_.NewSeq(expr.kind == ExprKind::kList ? SeqKind::kList : SeqKind::kTuple,
                    std::move(items));
}

Result<Value> Evaluator::EvalDict(const Expr& expr) {
  Dict* dict = rt_.NewDict();
  for (size_t i = 0; i < expr.args.size(); i += 2) {
    MM01_ASSIGN_OR_RETURN(const Value key, Eval(*expr.args[i]));
    MM01_ASSIGN_OR_RETURN(const Value value, Eval(*expr.args[i + 1]));
    if (!Hashable(key)) {
      return At(expr.line,
                Status::Invalid(fmt::format("{} cannot be a key of a dict", KindName(key))));
    }
    SetKey(rt_, *dict, key, value);
  }
  return Value::Of(dict);
}

Result<Value> Evaluator::EvalChainOfOperators(const Expr& expr) {
  if (expr.kind == ExprKind::kConcat) {
    MM01_ASSIGN_OR_RETURN(const std::vector<Value> items, EvalAll(expr.args));
    TextBuilder builder(rt_.budget);
    for (const Value& item : items) {
      MM01_ASSIGN_OR_RETURN(const Value text, At(expr.line, ToString(rt_, item)));
      builder.Append(*text.text);
    }
    return At(expr.line, rt_.Built(std::move(builder)));
  }
  MM01_ASSIGN_OR_RETURN(Value left, Eval(*expr.args[0]));
  for (size_t i = 0; i < expr.ops.size(); ++i) {
    MM01_ASSIGN_OR_RETURN(Value right, Eval(*expr.args[i + 1]));
    if (expr.kind == ExprKind::kBinary) {
      MM01_ASSIGN_OR_RETURN(left, At(expr.line, Arithmetic(rt_, expr.ops[i], left, right)));
      continue;
    }
    const Result<bool> holds = Compare(rt_, expr.ops[i], left, right);
    if (!holds.ok()) return At(expr.line, holds.status());
    if (!holds.value()) return Value::Bool(false);
    left = right;
  }
  return expr.kind == ExprKind::kBinary ? left : Value::Bool(true);
}

Result<Value> Evaluator::EvalLogic(const Expr& expr) {
  Value v;
  for (const ExprPtr& arg : expr.args) {
    MM01_ASSIGN_OR_RETURN(v, Eval(*arg));
    if (Truth(v) == (expr.kind == ExprKind::kOr)) break;
  }
  return v;
}

Result<Value> Evaluator::EvalUnary(const Expr& expr) {
  MM01_ASSIGN_OR_RETURN(const Value v, Eval(*expr.args[0]));
  if (expr.kind == ExprKind::kNot) return Value::Bool(!Truth(v));
  if (expr.kind == ExprKind::kNegate) return At(expr.line, Negate(v));
  if (v.kind == Kind::kFloat) return v;
  if (v.IsInteger()) return Value::Int(v.AsInt(), v.trusted);
  return At(expr.line, Status::Invalid(fmt::format("'+' before {}", KindName(v))));
}

Result<Value> Evaluator::EvalChain(const Expr& expr) {
  MM01_ASSIGN_OR_RETURN(Value v, Eval(*expr.args[0]));
  for (const auto& postfix : expr.postfixes) {
    if (!rt_.budget.Step()) break;
    MM01_ASSIGN_OR_RETURN(v, At(postfix->line, ApplyPostfix(v, *postfix)));
  }
  return v;
}

Result<Value> Evaluator::ApplyPostfix(const Value& v, const Postfix& postfix) {
  if (postfix.kind == PostfixKind::kAttribute) return GetAttribute(rt_, v, postfix.name);
  if (postfix.kind == PostfixKind::kItem) return EvalItem(v, *postfix.args[0]);
  Arguments args;
  MM01_ASSIGN_OR_RETURN(args.positional, EvalAll(postfix.args));
  for (const auto& keyword : postfix.keywords) {
    MM01_ASSIGN_OR_RETURN(const Value value, Eval(*keyword->value));
    args.named.emplace_back(&keyword->name, value);
  }
  if (postfix.kind == PostfixKind::kFilter) return ApplyFilter(rt_, postfix.name.view, v, args);
  if (postfix.kind == PostfixKind::kCall) return Call(v, args);
  MM01_ASSIGN_OR_RETURN(const bool good, ApplyTest(rt_, postfix.name.view, v, args));
  return Value::Bool(good != postfix.negated);
}

Result<Value> Evaluator::EvalItem(const Value& v, const Expr& subscript) {
  if (subscript.kind != ExprKind::kSlice) {
    MM01_ASSIGN_OR_RETURN(const Value key, Eval(subscript));
    return GetItem(rt_, v, key);
  }
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    bounds[i] = Value::None();
    if (!subscript.args[i]) continue;
    MM01_ASSIGN_OR_RETURN(bounds[i], Eval(*subscript.args[i]));
  }
  return GetSlice(rt_, v, bounds[0], bounds[1], bounds[2]);
}

Result<Value> Evaluator::Call(const Value& callee, const Arguments& args) {
  switch (callee.kind) {
    case Kind::kMethod:
      return CallMethod(rt_, *callee.method, args);
    case Kind::kMacro:
      return CallMacro(*callee.closure, args);
    case Kind::kFunction:
      return CallFunction(callee.function, args);
    case Kind::kUndefined:
      if (callee.text && callee.text->view == "strftime_now") {
        return Status::Unsupported(
            "'strftime_now' is not supported: a prompt is a function of the conversation alone");
      }
      return UndefinedError(callee);
    default:
      return Status::Invalid(fmt::format("{} is called", KindName(callee)));
  }
}

Result<Value> Evaluator::CallMacro(const Closure& closure, const Arguments& args) {
  if (macro_depth_ >= kMaxNesting) {
    return Status::TooLarge(fmt::format("macros call macros more than {} deep", kMaxNesting));
  }
  ++macro_depth_;
  Scope* const outside = std::exchange(scope_, NewScope(closure.scope));
  TextBuilder inner(rt_.budget);
  Status status = BindParameters(*closure.macro, args);
  if (status.ok()) status = RunBody(closure.macro->body, inner).status();
  scope_ = outside;
  --macro_depth_;
  MM01_RETURN_IF_ERROR(status);
  return rt_.Built(std::move(inner));
}

Status Evaluator::BindParameters(const Macro& macro, const Arguments& args) {
  const auto& parameters = macro.parameters;
  if (args.positional.size() > parameters.size()) {
    return Status::Invalid(fmt::format("the macro '{}' takes at most {} arguments, found {}",
                                       macro.name.view, parameters.size(), args.positional.size()));
  }
  size_t num_named = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Keyword& parameter = *parameters[i];
    const auto named = std::find_if(args.named.begin(), args.named.end(), [&](const auto& arg) {
      return arg.first->view == parameter.name.view;
    });
    Value v = Value::Undefined(&parameter.name);
    if (i < args.positional.size()) {
      v = args.positional[i];
    } else if (named != args.named.end()) {
      v = named->second;
      ++num_named;
    } else if (parameter.value) {
      MM01_ASSIGN_OR_RETURN(v, Eval(*parameter.value));
    }
    Define(scope_, parameter.name.view, v);
  }
  if (num_named == args.named.size()) return Status::Ok();
  return Status::Invalid(
      fmt::format("the macro '{}' got an argument twice or by a name that it "
                  "does not have",
                  macro.name.view));
}

Result<Value> Evaluator::CallFunction(Function function, const Arguments& args) {
  switch (function) {
    case Function::kRange:
      return Range(args);
    case Function::kRaiseException: {
      MM01_ASSIGN_OR_RETURN(const auto bound, Bind(args, "raise_exception", {"message"}, 1));
      MM01_ASSIGN_OR_RETURN(const Value message, ToString(rt_, *bound[0]));
      return Status::Invalid(
          fmt::format("the chat template refuses the conversation: {}", message.text->view));
    }
    case Function::kDict:
    case Function::kNamespace:
      break;
  }
  Dict* dict = rt_.NewDict();
  if (args.positional.size() > 1 ||
      (!args.positional.empty() && args.positional[0].kind != Kind::kDict)) {
    return Status::Unsupported("dict and namespace from anything but one dict and names");
  }
  if (!args.positional.empty()) dict->items = args.positional[0].dict->items;
  rt_.budget.Items(dict->items.size());
  for (const auto& [name, value] : args.named) {
    SetKey(rt_, *dict, Value::String(name), value);
  }
  Value v = Value::Of(dict);
  if (function == Function::kNamespace) v.kind = Kind::kNamespace;
  return v;
}

Result<Value> Evaluator::Range(const Arguments& args) {
  if (!args.named.empty() || args.positional.empty() || args.positional.size() > 3) {
    return Status::Invalid("range wants one to three ints");
  }
  int64_t values[3] = {0, 0, 1};
  bool trusted = true;
  for (size_t i = 0; i < args.positional.size(); ++i) {
    const size_t at = args.positional.size() == 1 ? 1 : i;
    MM01_ASSIGN_OR_RETURN(values[at], IntArgument(args.positional[i], "range"));
    trusted = trusted && args.positional[i].trusted;
  }
  const auto [start, stop, step] = values;
  if (step == 0) return Status::Invalid("the step of a range is 0");
  const __int128 span =
      step > 0 ? static_cast<__int128>(stop) - start : static_cast<__int128>(start) - stop;
  const __int128 stride = step > 0 ? step : -static_cast<__int128>(step);
  const __int128 count = span > 0 ? (span + stride - 1) / stride : 0;
  if (count > kMaxItems) {
    return Status::TooLarge(
        fmt::format("range({}, {}, {}) has more than {} numbers", start, stop, step, kMaxItems));
  }
  std::vector<Value> items;
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) {
    items.push_back(Value::Int(start + i * step, trusted));
  }
  const Value range = rt_.NewSeq(SeqKind::kRange, std::move(items));
  range.seq->range = {start, stop, step};
  return range;
}

}  // namespace mm01::jinja
