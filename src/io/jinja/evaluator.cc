#include "io/jinja/evaluator.h"

#include <fmt/core.h>

#include "io/jinja/filters.h"
#include "io/jinja/format.h"
#include "io/jinja/operators.h"

namespace mm01::jinja {

Status Evaluator::Run(const Body& body,
                      const std::vector<std::pair<std::string_view, Value>>& names,
                      TextBuilder& out) {
  Scope* globals = NewScope(nullptr);
  globals->names = {{"range", Value::Of(Function::kRange)},
                    {"namespace", Value::Of(Function::kNamespace)},
                    {"dict", Value::Of(Function::kDict)},
                    {"raise_exception", Value::Of(Function::kRaiseException)}};
  Scope* context = NewScope(globals);
  context->names = names;
  scope_ = NewScope(context);
  MM01_ASSIGN_OR_RETURN(const Flow flow, RunBody(body, out));
  Check(flow == Flow::kNext, "a jump left the template");
  if (!rt_.budget.spent()) return Status::Ok();
  return At(body.empty() ? 1 : body.back()->line, Status::Ok());
}

Scope* Evaluator::NewScope(Scope* parent) {
  Scope& scope = scopes_.emplace_back();
  scope.parent = parent;
  return &scope;
}

Value Evaluator::Lookup(const Text& name) {
  for (const Scope* scope = scope_; scope; scope = scope->parent) {
    rt_.budget.Bytes(4 * scope->names.size());
    for (const auto& [known, value] : scope->names) {
      if (known == name.view) return value;
    }
  }
  return Value::Undefined(&name);
}

void Evaluator::Define(Scope* scope, std::string_view name, const Value& value) {
  rt_.budget.Bytes(4 * scope->names.size());
  for (auto& [known, old] : scope->names) {
    if (known != name) continue;
    old = value;
    return;
  }
  scope->names.emplace_back(name, value);
}

Status Evaluator::Assign(const Expr& target, const Value& value) {
  if (target.kind == ExprKind::kName) {
    Define(scope_, target.text.view, value);
    return Status::Ok();
  }
  if (target.kind == ExprKind::kNamespaceRef) {
    const Value space = Lookup(target.text);
    if (space.kind != Kind::kNamespace) {
      return At(target.line,
                Status::Invalid(fmt::format("'{}' is {}, only a namespace can be assigned to",
                                            target.text.view, KindName(space))));
    }
    SetKey(rt_, *space.dict, target.args[0]->value, value);
    return Status::Ok();
  }
  Result<std::vector<Value>> items = Iterate(rt_, value);
  if (!items.ok()) return At(target.line, items.status());
  if (items->size() != target.args.size()) {
    return At(target.line, Status::Invalid(fmt::format("{} values for {} names", items->size(),
                                                       target.args.size())));
  }
  for (size_t i = 0; i < target.args.size(); ++i) {
    MM01_RETURN_IF_ERROR(Assign(*target.args[i], (*items)[i]));
  }
  return Status::Ok();
}

Status Evaluator::At(int line, const Status& status) {
  if (placed_) return status;
  placed_ = true;
  if (rt_.budget.spent()) {  // whatever else went wrong, it was not given the steps it needed
    return Status::TooLarge(
        fmt::format("{}: line {}: the template takes more than {} steps", where_, line, kMaxSteps));
  }
  return {status.code(), fmt::format("{}: line {}: {}", where_, line, status.message())};
}

Result<Value> Evaluator::At(int line, Result<Value> result) {
  if (!result.ok()) return At(line, result.status());
  return result;
}

Status Evaluator::Step(int line, const DepthGuard& depth) {
  if (!rt_.budget.Step()) return At(line, Status::Ok());
  if (!depth.ok()) {
    return At(line, Status::TooLarge(fmt::format("deeper than {} levels", kMaxDepth)));
  }
  return Status::Ok();
}

Result<Evaluator::Flow> Evaluator::RunBody(const Body& body, TextBuilder& out) {
  for (const auto& stmt : body) {
    const DepthGuard depth(rt_);
    MM01_RETURN_IF_ERROR(Step(stmt->line, depth));
    MM01_ASSIGN_OR_RETURN(const Flow flow, RunStmt(*stmt, out));
    if (out.full() && !rt_.budget.spent()) {
      return At(stmt->line,
                Status::TooLarge(fmt::format("the output grows over {} bytes", kMaxTextBytes)));
    }
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Result<Evaluator::Flow> Evaluator::RunScoped(const Body& body, Scope* scope, TextBuilder& out) {
  Scope* const outside = std::exchange(scope_, scope);
  Result<Flow> flow = RunBody(body, out);
  scope_ = outside;
  return flow;
}

Result<Evaluator::Flow> Evaluator::RunStmt(const Stmt& stmt, TextBuilder& out) {
  switch (stmt.kind) {
    case StmtKind::kData:
      out.Append(stmt.text);
      return Flow::kNext;
    case StmtKind::kPrint: {
      MM01_ASSIGN_OR_RETURN(const Value v, Eval(*stmt.expr));
      MM01_ASSIGN_OR_RETURN(const Value text, At(stmt.line, ToString(rt_, v)));
      out.Append(*text.text);
      return Flow::kNext;
    }
    case StmtKind::kIf:
      for (const Branch& branch : stmt.branches) {
        if (branch.condition) {
          MM01_ASSIGN_OR_RETURN(const Value condition, Eval(*branch.condition));
          if (!Truth(condition)) continue;
        }
        return RunBody(branch.body, out);
      }
      return Flow::kNext;
    case StmtKind::kFor:
      return RunFor(stmt, out);
    case StmtKind::kSet: {
      MM01_ASSIGN_OR_RETURN(const Value v, Eval(*stmt.expr));
      MM01_RETURN_IF_ERROR(Assign(*stmt.target, v));
      return Flow::kNext;
    }
    case StmtKind::kSetBlock: {
      MM01_ASSIGN_OR_RETURN(const Value v, Capture(stmt));
      MM01_RETURN_IF_ERROR(Assign(*stmt.target, v));
      return Flow::kNext;
    }
    case StmtKind::kFilterBlock: {
      MM01_ASSIGN_OR_RETURN(const Value v, Capture(stmt));
      MM01_ASSIGN_OR_RETURN(const Value text, At(stmt.line, ToString(rt_, v)));
      out.Append(*text.text);
      return Flow::kNext;
    }
    case StmtKind::kMacro: {
      Value v = Value::None();
      v.kind = Kind::kMacro;
      v.closure = &closures_.emplace_back(Closure{stmt.macro.get(), scope_});
      Define(scope_, stmt.macro->name.view, v);
      return Flow::kNext;
    }
    case StmtKind::kWith:
      return RunWith(stmt, out);
    case StmtKind::kScope:
      return RunScoped(stmt.body, NewScope(scope_), out);
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  Fail("a statement of no kind");
}

Result<Evaluator::Flow> Evaluator::RunWith(const Stmt& stmt, TextBuilder& out) {
  // The values see the names outside, not each other.
  Scope* const scope = NewScope(scope_);
  std::vector<Value> values;
  for (const auto& [target, expr] : stmt.assignments) {
    MM01_ASSIGN_OR_RETURN(const Value v, Eval(*expr));
    values.push_back(v);
  }
  Scope* const outside = std::exchange(scope_, scope);
  Status status;
  for (size_t i = 0; i < values.size() && status.ok(); ++i) {
    status = Assign(*stmt.assignments[i].first, values[i]);
  }
  scope_ = outside;
  MM01_RETURN_IF_ERROR(status);
  return RunScoped(stmt.body, scope, out);
}

Result<Value> Evaluator::Capture(const Stmt& stmt) {
  TextBuilder inner(rt_.budget);
  MM01_ASSIGN_OR_RETURN(const Flow flow, RunScoped(stmt.body, NewScope(scope_), inner));
  Check(flow == Flow::kNext, "a jump left a captured body");
  MM01_ASSIGN_OR_RETURN(const Value text, At(stmt.line, rt_.Built(std::move(inner))));
  if (!stmt.expr) return text;
  Scope* const outside = std::exchange(scope_, NewScope(scope_));
  Define(scope_, kBodyName, text);
  Result<Value> filtered = Eval(*stmt.expr);
  scope_ = outside;
  return filtered;
}

Result<std::vector<Value>> Evaluator::LoopItems(const Stmt& stmt) {
  MM01_ASSIGN_OR_RETURN(const Value v, Eval(*stmt.expr));
  Result<std::vector<Value>> items = Iterate(rt_, v);
  if (!items.ok()) return At(stmt.line, items.status());
  if (!stmt.condition) return items;
  std::vector<Value> kept;
  Scope* const outside = scope_;
  for (const Value& item : *items) {
    scope_ = NewScope(outside);
    Status status = Assign(*stmt.target, item);
    Result<Value> condition = status.ok() ? Eval(*stmt.condition) : Result<Value>(status);
    scope_ = outside;
    MM01_RETURN_IF_ERROR(condition.status());
    if (Truth(*condition)) kept.push_back(item);
  }
  return kept;
}

Result<Evaluator::Flow> Evaluator::RunFor(const Stmt& stmt, TextBuilder& out) {
  MM01_ASSIGN_OR_RETURN(std::vector<Value> items, LoopItems(stmt));
  Loop& loop = loops_.emplace_back();
  loop.items = std::move(items);
  Value loop_value = Value::None();
  loop_value.kind = Kind::kLoop;
  loop_value.loop = &loop;
  bool ran_through = false;
  for (loop.index = 0; loop.index < loop.items.size(); ++loop.index) {
    if (!rt_.budget.Step()) break;
    Scope* const scope = NewScope(scope_);
    Define(scope, "loop", loop_value);
    Scope* const outside = std::exchange(scope_, scope);
    const Status status = Assign(*stmt.target, loop.items[loop.index]);
    scope_ = outside;
    MM01_RETURN_IF_ERROR(status);
    MM01_ASSIGN_OR_RETURN(const Flow flow, RunScoped(stmt.body, scope, out));
    if (flow == Flow::kBreak) break;
    ran_through = ran_through || flow == Flow::kNext;
  }
  // As Jinja2 compiles it: `else` runs unless the end of the body was reached once.
  if (ran_through) return Flow::kNext;
  return RunScoped(stmt.otherwise, NewScope(scope_), out);
}

}  // namespace mm01::jinja
