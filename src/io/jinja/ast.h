// A parsed template. Chains that associate to the left (a + b + c, a.b | c) are flat lists, so the
// depth of the tree is the nesting of the source, which the parser bounds.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/jinja/value.h"

namespace mm01::jinja {

struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using Body = std::vector<std::unique_ptr<Stmt>>;

enum class ExprKind {
  kConst,         // value
  kName,          // text
  kList,          // args
  kTuple,         // args
  kDict,          // args: key, value, key, value ...
  kSlice,         // args: start, stop, step, each may be null; only inside a kItem postfix
  kBinary,        // args[0] ops[0] args[1] ops[1] ..., left to right: + - or * / // % or **
  kConcat,        // args, with ~
  kCompare,       // args[0] ops[0] args[1] ..., each pair must hold
  kAnd,           // args
  kOr,            // args
  kNot,           // args[0]
  kNegate,        // args[0]
  kPlus,          // args[0]
  kCond,          // args: condition, then, else (may be null)
  kChain,         // args[0], then postfix by postfix
  kNamespaceRef,  // a target only: text is the namespace, args[0] a kConst with the attribute
};

struct Keyword {
  Text name;
  ExprPtr value;
};

enum class PostfixKind { kAttribute, kItem, kCall, kFilter, kTest };

struct Postfix {
  PostfixKind kind;
  int line;
  Text name;             // of attribute, filter or test
  bool negated = false;  // is not
  std::vector<ExprPtr> args;
  std::vector<std::unique_ptr<Keyword>> keywords;
};

struct Expr {
  Expr(ExprKind k, int at) : kind(k), line(at) {}

  ExprKind kind;
  int line;
  Value value;
  Text text;
  std::vector<ExprPtr> args;
  std::vector<std::string> ops;
  std::vector<std::unique_ptr<Postfix>> postfixes;
};

enum class StmtKind {
  kData,         // text
  kPrint,        // expr
  kIf,           // branches, the last may have no condition
  kFor,          // target, expr, condition (may be null), body, otherwise
  kSet,          // target, expr
  kSetBlock,     // target, body; expr is a chain of filters on the body or null
  kMacro,        // macro
  kFilterBlock,  // body; expr as in kSetBlock
  kWith,         // assignments, body
  kScope,        // body: {% generation %}
  kBreak,
  kContinue,
};

struct Branch {
  ExprPtr condition;
  Body body;
};

struct Macro {
  Text name;
  std::vector<std::unique_ptr<Keyword>> parameters;  // value: the default or null
  Body body;
};

struct Stmt {
  Stmt(StmtKind k, int at) : kind(k), line(at) {}

  StmtKind kind;
  int line;
  Text text;
  ExprPtr target;
  ExprPtr expr;
  ExprPtr condition;
  Body body;
  Body otherwise;
  std::vector<Branch> branches;
  std::vector<std::pair<ExprPtr, ExprPtr>> assignments;
  std::unique_ptr<Macro> macro;
};

// The name that stands for the body in the filter chain of kSetBlock and kFilterBlock.
inline constexpr std::string_view kBodyName = "the body";

}  // namespace mm01::jinja
