#include "io/jinja/expression_parser.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>

namespace mm01::jinja {
namespace {

std::string Describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kString:
      return fmt::format("the string '{}'", token.text.substr(0, 50));
    case TokenKind::kData:
      return "text";
    case TokenKind::kEnd:
      return token.text;
    default:
      return fmt::format("'{}'", token.text.substr(0, 50));
  }
}

ExprPtr ConstOf(Value value, int line) {
  auto expr = std::make_unique<Expr>(ExprKind::kConst, line);
  expr->value = value;
  return expr;
}

}  // namespace

Status ExpressionParser::Error(int line, std::string_view what) const {
  return Status::Invalid(fmt::format("{}: line {}: {}", where_, line, what));
}

Status ExpressionParser::Unsupported(int line, std::string_view what) const {
  return Status::Unsupported(fmt::format("{}: line {}: {} is not supported", where_, line, what));
}

Status ExpressionParser::Nest::status() const {
  if (p_.nesting_ <= kMaxNesting) return Status::Ok();
  return p_.Error(p_.Now().line, fmt::format("nested deeper than {} levels", kMaxNesting));
}

bool ExpressionParser::SkipName(std::string_view name) {
  if (!AtName(name)) return false;
  Skip();
  return true;
}

bool ExpressionParser::SkipOperator(std::string_view op) {
  if (!AtOperator(op)) return false;
  Skip();
  return true;
}

Status ExpressionParser::ExpectOperator(std::string_view op) {
  if (SkipOperator(op)) return Status::Ok();
  return Error(Now().line, fmt::format("{} stands where '{}' was wanted", Describe(Now()), op));
}

Status ExpressionParser::TakeName(std::string_view what, std::string& name) {
  if (Now().kind != TokenKind::kName) {
    return Error(Now().line, fmt::format("{} stands where {} was wanted", Describe(Now()), what));
  }
  name = Now().text;
  Skip();
  return Status::Ok();
}

Result<ExprPtr> ExpressionParser::Expression(bool with_if) {
  const Nest nest(*this);
  MM01_RETURN_IF_ERROR(nest.status());
  MM01_ASSIGN_OR_RETURN(ExprPtr then, Or());
  if (!with_if || !AtName("if")) return then;
  auto cond = std::make_unique<Expr>(ExprKind::kCond, Now().line);
  Skip();
  MM01_ASSIGN_OR_RETURN(ExprPtr condition, Or());
  ExprPtr otherwise;
  if (SkipName("else")) {
    MM01_ASSIGN_OR_RETURN(otherwise, Expression());
  }
  if (AtName("if")) return Unsupported(Now().line, "a second 'if' without parentheses or 'else'");
  cond->args.push_back(std::move(condition));
  cond->args.push_back(std::move(then));
  cond->args.push_back(std::move(otherwise));
  return cond;
}

bool ExpressionParser::AtTupleEnd() const {
  return Now().kind == TokenKind::kBlockEnd || Now().kind == TokenKind::kPrintEnd ||
         AtOperator(")") || AtName("in") || AtName("recursive");
}

Result<ExprPtr> ExpressionParser::TupleOrExpression(bool with_if, bool in_parentheses) {
  auto tuple = std::make_unique<Expr>(ExprKind::kTuple, Now().line);
  bool has_comma = false;
  while (!AtTupleEnd()) {
    MM01_ASSIGN_OR_RETURN(ExprPtr item, Expression(with_if));
    tuple->args.push_back(std::move(item));
    if (!SkipOperator(",")) break;
    has_comma = true;
  }
  if (has_comma || (tuple->args.empty() && in_parentheses)) return tuple;
  if (tuple->args.empty()) {
    return Error(Now().line,
                 fmt::format("{} stands where an expression was wanted", Describe(Now())));
  }
  return std::move(tuple->args[0]);
}

Result<ExprPtr> ExpressionParser::Target() {
  const Nest nest(*this);
  MM01_RETURN_IF_ERROR(nest.status());
  auto tuple = std::make_unique<Expr>(ExprKind::kTuple, Now().line);
  bool has_comma = false;
  while (!AtTupleEnd() && !AtOperator("=")) {
    ExprPtr item;
    if (SkipOperator("(")) {
      MM01_ASSIGN_OR_RETURN(item, Target());
      MM01_RETURN_IF_ERROR(ExpectOperator(")"));
    } else {
      const int line = Now().line;
      std::string name;
      MM01_RETURN_IF_ERROR(TakeName("a name to assign to", name));
      if (name == "loop" || name == "true" || name == "false" || name == "none" || name == "True" ||
          name == "False" || name == "None") {
        return Error(line, fmt::format("'{}' cannot be assigned to", name));
      }
      item = std::make_unique<Expr>(ExprKind::kName, line);
      Own(std::move(name), true, item->text);
      if (SkipOperator(".")) {
        item->kind = ExprKind::kNamespaceRef;
        std::string attribute;
        MM01_RETURN_IF_ERROR(TakeName("the name of an attribute", attribute));
        auto constant = std::make_unique<Expr>(ExprKind::kConst, line);
        Own(std::move(attribute), true, constant->text);
        constant->value = Value::String(&constant->text);
        item->args.push_back(std::move(constant));
      }
    }
    tuple->args.push_back(std::move(item));
    if (!SkipOperator(",")) break;
    has_comma = true;
  }
  if (tuple->args.empty()) {
    return Error(Now().line,
                 fmt::format("{} stands where a name to assign to was wanted", Describe(Now())));
  }
  if (has_comma) return tuple;
  return std::move(tuple->args[0]);
}

Result<ExprPtr> ExpressionParser::Binary(ExprKind kind, std::vector<std::string_view> ops,
                                         Result<ExprPtr> (ExpressionParser::*operand)()) {
  MM01_ASSIGN_OR_RETURN(ExprPtr first, (this->*operand)());
  ExprPtr chain;
  while (true) {
    const auto* op = &*std::find_if(ops.begin(), ops.end(), [&](std::string_view o) {
      return Now().text == o &&
             (Now().kind == TokenKind::kOperator || Now().kind == TokenKind::kName);
    });
    if (op == ops.data() + ops.size()) break;
    if (!chain) {
      chain = std::make_unique<Expr>(kind, Now().line);
      chain->args.push_back(std::move(first));
    }
    Skip();
    chain->ops.emplace_back(*op);
    MM01_ASSIGN_OR_RETURN(ExprPtr next, (this->*operand)());
    chain->args.push_back(std::move(next));
  }
  if (chain) return chain;
  return first;
}

Result<ExprPtr> ExpressionParser::Or() {
  return Binary(ExprKind::kOr, {"or"}, &ExpressionParser::And);
}

Result<ExprPtr> ExpressionParser::And() {
  return Binary(ExprKind::kAnd, {"and"}, &ExpressionParser::Not);
}

Result<ExprPtr> ExpressionParser::Not() {
  if (!AtName("not")) return Compare();
  const Nest nest(*this);
  MM01_RETURN_IF_ERROR(nest.status());
  auto negation = std::make_unique<Expr>(ExprKind::kNot, Now().line);
  Skip();
  MM01_ASSIGN_OR_RETURN(ExprPtr operand, Not());
  negation->args.push_back(std::move(operand));
  return negation;
}

Result<ExprPtr> ExpressionParser::Compare() {
  static constexpr std::string_view kOps[] = {"==", "!=", ">", ">=", "<", "<="};
  MM01_ASSIGN_OR_RETURN(ExprPtr first, Sum());
  auto chain = std::make_unique<Expr>(ExprKind::kCompare, Now().line);
  chain->args.push_back(std::move(first));
  while (true) {
    const Token& token = Now();
    if (token.kind == TokenKind::kOperator &&
        std::find(std::begin(kOps), std::end(kOps), token.text) != std::end(kOps)) {
      chain->ops.push_back(token.text);
    } else if (AtName("in")) {
      chain->ops.emplace_back("in");
    } else if (AtName("not") && Is(Next(), TokenKind::kName, "in")) {
      chain->ops.emplace_back("not in");
      Skip();
    } else {
      break;
    }
    Skip();
    MM01_ASSIGN_OR_RETURN(ExprPtr operand, Sum());
    chain->args.push_back(std::move(operand));
  }
  if (chain->ops.empty()) return std::move(chain->args[0]);
  return chain;
}

Result<ExprPtr> ExpressionParser::Sum() {
  return Binary(ExprKind::kBinary, {"+", "-"}, &ExpressionParser::Concat);
}

Result<ExprPtr> ExpressionParser::Concat() {
  return Binary(ExprKind::kConcat, {"~"}, &ExpressionParser::Product);
}

Result<ExprPtr> ExpressionParser::Product() {
  return Binary(ExprKind::kBinary, {"*", "/", "//", "%"}, &ExpressionParser::Power);
}

Result<ExprPtr> ExpressionParser::Power() {
  return Binary(ExprKind::kBinary, {"**"}, &ExpressionParser::UnaryWithFilters);
}

Result<ExprPtr> ExpressionParser::Unary(bool with_filters) {
  ExprPtr base;
  if (AtOperator("-") || AtOperator("+")) {
    const Nest nest(*this);
    MM01_RETURN_IF_ERROR(nest.status());
    base =
        std::make_unique<Expr>(AtOperator("-") ? ExprKind::kNegate : ExprKind::kPlus, Now().line);
    Skip();
    MM01_ASSIGN_OR_RETURN(ExprPtr operand, Unary(false));
    base->args.push_back(std::move(operand));
  } else {
    MM01_ASSIGN_OR_RETURN(base, Primary());
  }
  ExprPtr chain = MakeChain(std::move(base));
  MM01_RETURN_IF_ERROR(PostfixesOf(*chain));
  while (with_filters) {
    if (AtOperator("|")) {
      MM01_RETURN_IF_ERROR(Filters(*chain));
    } else if (AtName("is")) {
      MM01_RETURN_IF_ERROR(Test(*chain));
    } else if (AtOperator("(")) {
      MM01_RETURN_IF_ERROR(Call(*chain));
    } else {
      break;
    }
  }
  if (chain->postfixes.empty()) return std::move(chain->args[0]);
  return chain;
}

Result<ExprPtr> ExpressionParser::Primary() {
  const Token& token = Now();
  switch (token.kind) {
    case TokenKind::kName: {
      Skip();
      const std::string& name = token.text;
      if (name == "true" || name == "True") return ConstOf(Value::Bool(true), token.line);
      if (name == "false" || name == "False") return ConstOf(Value::Bool(false), token.line);
      if (name == "none" || name == "None") return ConstOf(Value::None(), token.line);
      auto expr = std::make_unique<Expr>(ExprKind::kName, token.line);
      Own(name, true, expr->text);
      return expr;
    }
    case TokenKind::kString: {
      auto expr = std::make_unique<Expr>(ExprKind::kConst, token.line);
      std::string text;
      for (; Now().kind == TokenKind::kString; Skip()) text += Now().text;
      Own(std::move(text), true, expr->text);
      expr->value = Value::String(&expr->text);
      return expr;
    }
    case TokenKind::kInt:
    case TokenKind::kFloat:
      return Number();
    default:
      break;
  }
  if (AtOperator("[")) return ListLiteral();
  if (AtOperator("{")) return DictLiteral();
  if (SkipOperator("(")) {
    MM01_ASSIGN_OR_RETURN(ExprPtr expr, TupleOrExpression(true, true));
    MM01_RETURN_IF_ERROR(ExpectOperator(")"));
    return expr;
  }
  return Error(token.line,
               fmt::format("{} stands where an expression was wanted", Describe(token)));
}

Result<ExprPtr> ExpressionParser::Number() {
  const Token& token = Now();
  Skip();
  const char* end = token.text.data() + token.text.size();
  if (token.kind == TokenKind::kInt) {
    int64_t i = 0;
    if (std::from_chars(token.text.data(), end, i).ec != std::errc()) {
      return Error(token.line, fmt::format("the number {} does not fit 64 bits", token.text));
    }
    return ConstOf(Value::Int(i), token.line);
  }
  double f = 0;
  if (std::from_chars(token.text.data(), end, f).ec != std::errc()) {
    return Error(token.line, fmt::format("the number {} does not fit a double", token.text));
  }
  return ConstOf(Value::Float(f), token.line);
}

Result<ExprPtr> ExpressionParser::ListLiteral() {
  auto list = std::make_unique<Expr>(ExprKind::kList, Now().line);
  Skip();
  while (!AtOperator("]")) {
    if (!list->args.empty()) MM01_RETURN_IF_ERROR(ExpectOperator(","));
    if (AtOperator("]")) break;
    MM01_ASSIGN_OR_RETURN(ExprPtr item, Expression());
    list->args.push_back(std::move(item));
  }
  Skip();
  return list;
}

Result<ExprPtr> ExpressionParser::DictLiteral() {
  auto dict = std::make_unique<Expr>(ExprKind::kDict, Now().line);
  Skip();
  while (!AtOperator("}")) {
    if (!dict->args.empty()) MM01_RETURN_IF_ERROR(ExpectOperator(","));
    if (AtOperator("}")) break;
    MM01_ASSIGN_OR_RETURN(ExprPtr key, Expression());
    MM01_RETURN_IF_ERROR(ExpectOperator(":"));
    MM01_ASSIGN_OR_RETURN(ExprPtr value, Expression());
    dict->args.push_back(std::move(key));
    dict->args.push_back(std::move(value));
  }
  Skip();
  return dict;
}

}  // namespace mm01::jinja
