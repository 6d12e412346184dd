// Runs a parsed template. Statements are in evaluator.cc, expressions in expressions.cc.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "io/jinja/arguments.h"
#include "io/jinja/ast.h"
#include "io/jinja/methods.h"
#include "io/jinja/value.h"

namespace mm01::jinja {

struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string_view, Value>> names;
};

// A macro and the names that it sees.
struct Closure {
  const Macro* macro;
  Scope* scope;
};

class Evaluator {
 public:
  // Errors begin with `where` and the line.
  Evaluator(Runtime& rt, const std::string& where) : rt_(rt), where_(where) {}

  // Prints `body` into `out`. `names` are the variables it begins with; their values live in the
  // Runtime, and the strings that name them outlive the call. Called once.
  Status Run(const Body& body, const std::vector<std::pair<std::string_view, Value>>& names,
             TextBuilder& out);

 private:
  // How a list of statements was left.
  enum class Flow { kNext, kBreak, kContinue };

  Scope* NewScope(Scope* parent);
  Value Lookup(const Text& name);
  void Define(Scope* scope, std::string_view name, const Value& value);
  Status Assign(const Expr& target, const Value& value);

  // Adds the place, once: the innermost place that knows it wins. With the budget spent, the error
  // is that, whatever `status` is.
  Status At(int line, const Status& status);
  Result<Value> At(int line, Result<Value> result);
  // Every node goes through here once.
  Status Step(int line, const DepthGuard& depth);

  Result<Flow> RunBody(const Body& body, TextBuilder& out);
  // A body with names of its own.
  Result<Flow> RunScoped(const Body& body, Scope* scope, TextBuilder& out);
  Result<Flow> RunStmt(const Stmt& stmt, TextBuilder& out);
  Result<Flow> RunWith(const Stmt& stmt, TextBuilder& out);
  // What the body prints, through the filters of the block.
  Result<Value> Capture(const Stmt& stmt);
  // The items of a loop that pass its `if`.
  Result<std::vector<Value>> LoopItems(const Stmt& stmt);
  Result<Flow> RunFor(const Stmt& stmt, TextBuilder& out);

  Result<Value> Eval(const Expr& expr);
  Result<std::vector<Value>> EvalAll(const std::vector<ExprPtr>& exprs);
  Result<Value> EvalItems(const Expr& expr);
  Result<Value> EvalDict(const Expr& expr);
  Result<Value> EvalChainOfOperators(const Expr& expr);
  Result<Value> EvalLogic(const Expr& expr);
  Result<Value> EvalUnary(const Expr& expr);
  // a.b[c](d) | e is f: from left to right.
  Result<Value> EvalChain(const Expr& expr);
  Result<Value> ApplyPostfix(const Value& v, const Postfix& postfix);
  Result<Value> EvalItem(const Value& v, const Expr& subscript);

  Result<Value> Call(const Value& callee, const Arguments& args);
  Result<Value> CallMacro(const Closure& closure, const Arguments& args);
  // In the scope of the call.
  Status BindParameters(const Macro& macro, const Arguments& args);
  Result<Value> CallFunction(Function function, const Arguments& args);
  Result<Value> Range(const Arguments& args);

  Runtime& rt_;
  const std::string& where_;
  // All kept to the end: a macro may be called long after the scope it was defined in was left.
  std::deque<Scope> scopes_;
  std::deque<Closure> closures_;
  std::deque<Loop> loops_;
  Scope* scope_ = nullptr;
  int macro_depth_ = 0;
  bool placed_ = false;  // an error knows its line already
};

}  // namespace mm01::jinja
