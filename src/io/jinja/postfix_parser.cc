// What follows an operand: .name [item] (arguments) | filter, is test.
#include <fmt/core.h>

#include "io/jinja/expression_parser.h"
#include "io/jinja/filters.h"

namespace mm01::jinja {
namespace {

Postfix& AddPostfix(Expr& chain, PostfixKind kind, int line, std::string name = "") {
  auto& postfix = *chain.postfixes.emplace_back(std::make_unique<Postfix>());
  postfix.kind = kind;
  postfix.line = line;
  Own(std::move(name), true, postfix.name);
  return postfix;
}

}  // namespace

ExprPtr MakeChain(ExprPtr base) {
  auto chain = std::make_unique<Expr>(ExprKind::kChain, base->line);
  chain->args.push_back(std::move(base));
  return chain;
}

Status ExpressionParser::Call(Expr& chain) {
  return Arguments(AddPostfix(chain, PostfixKind::kCall, Now().line));
}

Status ExpressionParser::PostfixesOf(Expr& chain) {
  while (true) {
    if (AtOperator(".") || AtOperator("[")) {
      MM01_RETURN_IF_ERROR(Subscript(chain));
    } else if (AtOperator("(")) {
      MM01_RETURN_IF_ERROR(Call(chain));
    } else {
      return Status::Ok();
    }
  }
}

Status ExpressionParser::Subscript(Expr& chain) {
  const int line = Now().line;
  if (SkipOperator(".")) {
    if (Now().kind == TokenKind::kInt) {
      MM01_ASSIGN_OR_RETURN(ExprPtr index, Number());
      AddPostfix(chain, PostfixKind::kItem, line).args.push_back(std::move(index));
      return Status::Ok();
    }
    std::string name;
    MM01_RETURN_IF_ERROR(TakeName("the name of an attribute", name));
    AddPostfix(chain, PostfixKind::kAttribute, line, std::move(name));
    return Status::Ok();
  }
  Skip();
  MM01_ASSIGN_OR_RETURN(ExprPtr argument, SubscriptArgument());
  if (AtOperator(",")) return Unsupported(line, "a subscript with a comma");
  MM01_RETURN_IF_ERROR(ExpectOperator("]"));
  AddPostfix(chain, PostfixKind::kItem, line).args.push_back(std::move(argument));
  return Status::Ok();
}

Result<ExprPtr> ExpressionParser::SubscriptArgument() {
  auto slice = std::make_unique<Expr>(ExprKind::kSlice, Now().line);
  slice->args.resize(3);
  const auto at_end = [&] { return AtOperator(":") || AtOperator("]") || AtOperator(","); };
  if (!AtOperator(":")) {
    MM01_ASSIGN_OR_RETURN(slice->args[0], Expression());
    if (!AtOperator(":")) return std::move(slice->args[0]);
  }
  for (size_t i = 1; i < 3 && SkipOperator(":"); ++i) {
    if (!at_end()) {
      MM01_ASSIGN_OR_RETURN(slice->args[i], Expression());
    }
  }
  return slice;
}

Status ExpressionParser::Filters(Expr& chain, bool begun) {
  for (; begun || SkipOperator("|"); begun = false) {
    const int line = Now().line;
    std::string name;
    MM01_RETURN_IF_ERROR(TakeName("the name of a filter", name));
    if (AtOperator(".") || !HasFilter(name)) {
      return Unsupported(line, fmt::format("the filter '{}'", name));
    }
    Postfix& filter = AddPostfix(chain, PostfixKind::kFilter, line, std::move(name));
    if (AtOperator("(")) MM01_RETURN_IF_ERROR(Arguments(filter));
  }
  return Status::Ok();
}

Status ExpressionParser::Test(Expr& chain) {
  const int line = Now().line;
  Skip();
  const bool negated = SkipName("not");
  std::string name;
  MM01_RETURN_IF_ERROR(TakeName("the name of a test", name));
  if (AtOperator(".") || !HasTest(name)) {
    return Unsupported(line, fmt::format("the test '{}'", name));
  }
  Postfix& test = AddPostfix(chain, PostfixKind::kTest, line, std::move(name));
  test.negated = negated;
  if (AtOperator("(")) return Arguments(test);
  const TokenKind kind = Now().kind;
  const bool has_argument =
      (kind == TokenKind::kName && !AtName("else") && !AtName("or") && !AtName("and")) ||
      kind == TokenKind::kString || kind == TokenKind::kInt || kind == TokenKind::kFloat ||
      AtOperator("[") || AtOperator("{");
  if (!has_argument) return Status::Ok();
  if (AtName("is")) return Error(line, "two tests in a row need parentheses");
  MM01_ASSIGN_OR_RETURN(ExprPtr base, Primary());
  ExprPtr argument = MakeChain(std::move(base));
  MM01_RETURN_IF_ERROR(PostfixesOf(*argument));
  test.args.push_back(std::move(argument));
  return Status::Ok();
}

Status ExpressionParser::Arguments(Postfix& call) {
  Skip();
  bool first = true;
  while (!AtOperator(")")) {
    if (!first) MM01_RETURN_IF_ERROR(ExpectOperator(","));
    if (!first && AtOperator(")")) break;
    first = false;
    if (AtOperator("*") || AtOperator("**")) {
      return Unsupported(Now().line, fmt::format("'{}' before an argument", Now().text));
    }
    if (Now().kind == TokenKind::kName && Is(Next(), TokenKind::kOperator, "=")) {
      auto& keyword = *call.keywords.emplace_back(std::make_unique<Keyword>());
      Own(Now().text, true, keyword.name);
      Skip();
      Skip();
      MM01_ASSIGN_OR_RETURN(keyword.value, Expression());
      continue;
    }
    if (!call.keywords.empty()) {
      return Error(Now().line, "an argument without a name follows one with a name");
    }
    MM01_ASSIGN_OR_RETURN(ExprPtr argument, Expression());
    call.args.push_back(std::move(argument));
  }
  Skip();
  return Status::Ok();
}

Result<std::vector<std::unique_ptr<Keyword>>> ExpressionParser::Parameters() {
  std::vector<std::unique_ptr<Keyword>> parameters;
  MM01_RETURN_IF_ERROR(ExpectOperator("("));
  while (!AtOperator(")")) {
    if (!parameters.empty()) MM01_RETURN_IF_ERROR(ExpectOperator(","));
    auto& parameter = *parameters.emplace_back(std::make_unique<Keyword>());
    const int line = Now().line;
    std::string name;
    MM01_RETURN_IF_ERROR(TakeName("the name of a parameter", name));
    Own(std::move(name), true, parameter.name);
    if (SkipOperator("=")) {
      MM01_ASSIGN_OR_RETURN(parameter.value, Expression());
    } else if (parameters.size() > 1 && parameters[parameters.size() - 2]->value) {
      return Error(line, "a parameter without a default follows one with a default");
    }
  }
  Skip();
  return parameters;
}

}  // namespace mm01::jinja
