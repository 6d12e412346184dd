// The expressions of a template: operators in expression_parser.cc, what follows an operand in
// postfix_parser.cc. The statements are in parser.cc.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "io/jinja/ast.h"
#include "io/jinja/lexer.h"

namespace mm01::jinja {

// A kChain without postfixes.
ExprPtr MakeChain(ExprPtr base);

class ExpressionParser {
 public:
  ExpressionParser(std::vector<Token> tokens, const std::string& where)
      : tokens_(std::move(tokens)), where_(where) {}

  const Token& Now() const { return tokens_[at_]; }
  const Token& Next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void Skip() { at_ += at_ + 1 < tokens_.size(); }
  bool AtName(std::string_view name) const { return Is(Now(), TokenKind::kName, name); }
  bool AtOperator(std::string_view op) const { return Is(Now(), TokenKind::kOperator, op); }
  bool SkipName(std::string_view name);
  bool SkipOperator(std::string_view op);
  Status ExpectOperator(std::string_view op);
  Status TakeName(std::string_view what, std::string& name);

  // One expression; without `with_if` an `if` behind it is left alone.
  Result<ExprPtr> Expression(bool with_if = true);
  // An expression, or several with commas between: a tuple.
  Result<ExprPtr> TupleOrExpression(bool with_if = true, bool in_parentheses = false);
  // What can be assigned to: a name, namespace.name, or a tuple of them.
  Result<ExprPtr> Target();
  // | name(args) | name ..., added to `chain`. With `begun` the first '|' is not written.
  Status Filters(Expr& chain, bool begun = false);
  Result<std::vector<std::unique_ptr<Keyword>>> Parameters();

  Status Error(int line, std::string_view what) const;
  Status Unsupported(int line, std::string_view what) const;

  // Holds one level of nesting of the source.
  class Nest {
   public:
    explicit Nest(ExpressionParser& p) : p_(p) { ++p_.nesting_; }
    ~Nest() { --p_.nesting_; }
    Nest(const Nest&) = delete;
    Nest& operator=(const Nest&) = delete;
    Status status() const;

   private:
    ExpressionParser& p_;
  };

 private:
  static bool Is(const Token& token, TokenKind kind, std::string_view text) {
    return token.kind == kind && token.text == text;
  }
  bool AtTupleEnd() const;

  Result<ExprPtr> Or();
  Result<ExprPtr> And();
  Result<ExprPtr> Not();
  Result<ExprPtr> Compare();
  // A flat chain of operands that `operand` reads, with any of `ops` between them.
  Result<ExprPtr> Binary(ExprKind kind, std::vector<std::string_view> ops,
                         Result<ExprPtr> (ExpressionParser::*operand)());
  Result<ExprPtr> Sum();
  Result<ExprPtr> Concat();
  Result<ExprPtr> Product();
  Result<ExprPtr> Power();
  Result<ExprPtr> UnaryWithFilters() { return Unary(true); }
  Result<ExprPtr> Unary(bool with_filters);
  Result<ExprPtr> Primary();
  Result<ExprPtr> Number();
  Result<ExprPtr> ListLiteral();
  Result<ExprPtr> DictLiteral();

  Status PostfixesOf(Expr& chain);
  Status Call(Expr& chain);
  Status Subscript(Expr& chain);
  Result<ExprPtr> SubscriptArgument();
  Status Test(Expr& chain);
  Status Arguments(Postfix& call);

  std::vector<Token> tokens_;
  const std::string& where_;
  size_t at_ = 0;
  int nesting_ = 0;
};

}  // namespace mm01::jinja
