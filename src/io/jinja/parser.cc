#include "io/jinja/parser.h"

#include <fmt/core.h>

#include <initializer_list>

#include "io/jinja/expression_parser.h"
#include "io/jinja/lexer.h"

namespace mm01::jinja {
namespace {

using StmtPtr = std::unique_ptr<Stmt>;

class Parser {
 public:
  Parser(std::vector<Token> tokens, const std::string& where) : in_(std::move(tokens), where) {}

  Result<Body> Run() {
    MM01_ASSIGN_OR_RETURN(Body body, Statements({}));
    return body;
  }

 private:
  // Statements up to a block that begins with one of `ends`, which is left to be read: the name
  // after '{%' is the current token. Without `ends`, up to the end of the template.
  Result<Body> Statements(std::initializer_list<std::string_view> ends) {
    const ExpressionParser::Nest nest(in_);
    MM01_RETURN_IF_ERROR(nest.status());
    const int line = in_.Now().line;
    Body body;
    while (true) {
      const Token& token = in_.Now();
      switch (token.kind) {
        case TokenKind::kData:
          body.push_back(std::make_unique<Stmt>(StmtKind::kData, token.line));
          Own(token.text, true, body.back()->text);
          in_.Skip();
          break;
        case TokenKind::kPrintBegin: {
          in_.Skip();
          body.push_back(std::make_unique<Stmt>(StmtKind::kPrint, token.line));
          MM01_ASSIGN_OR_RETURN(body.back()->expr, in_.TupleOrExpression());
          MM01_RETURN_IF_ERROR(End(TokenKind::kPrintEnd, "}}"));
          break;
        }
        case TokenKind::kBlockBegin: {
          in_.Skip();
          for (const std::string_view end : ends) {
            if (in_.AtName(end)) return body;
          }
          MM01_ASSIGN_OR_RETURN(StmtPtr stmt, Block());
          body.push_back(std::move(stmt));
          break;
        }
        default:
          if (ends.size() == 0) return body;
          return in_.Error(line, fmt::format("the block that begins here is not closed, '{}' is "
                                             "missing",
                                             *(ends.end() - 1)));
      }
    }
  }

  Status End(TokenKind kind, std::string_view text) {
    if (in_.Now().kind != kind) {
      return in_.Error(in_.Now().line, fmt::format("'{}' stands where '{}' was wanted",
                                                   in_.Now().text.substr(0, 50), text));
    }
    in_.Skip();
    return Status::Ok();
  }
  Status BlockEnd() { return End(TokenKind::kBlockEnd, "%}"); }

  // A body and its end: %} statements {% `end` %}
  Result<Body> BodyUntil(std::string_view end) {
    MM01_RETURN_IF_ERROR(BlockEnd());
    MM01_ASSIGN_OR_RETURN(Body body, Statements({end}));
    in_.Skip();
    MM01_RETURN_IF_ERROR(BlockEnd());
    return body;
  }

  // The same where {% break %} cannot reach the loop outside.
  Result<Body> ClosedBodyUntil(std::string_view end) {
    const int loops = loops_;
    loops_ = 0;
    MM01_ASSIGN_OR_RETURN(Body body, BodyUntil(end));
    loops_ = loops;
    return body;
  }

  Result<StmtPtr> Block() {
    const int line = in_.Now().line;
    std::string tag;
    MM01_RETURN_IF_ERROR(in_.TakeName("the name of a block", tag));
    if (tag == "if") return If(line);
    if (tag == "for") return For(line);
    if (tag == "set") return Set(line);
    if (tag == "macro") return DefineMacro(line);
    if (tag == "with") return With(line);
    if (tag == "filter") return FilterBlock(line);
    if (tag == "generation") return Generation(line);
    if (tag == "break" || tag == "continue") return Jump(line, tag);
    for (const std::string_view known :
         {"block", "extends", "include", "import", "from", "call", "autoescape", "trans", "do"}) {
      if (tag == known) return in_.Unsupported(line, fmt::format("the block '{{% {} %}}'", tag));
    }
    return in_.Error(line, fmt::format("the block '{{% {} %}}' is unknown here", tag));
  }

  Result<StmtPtr> If(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kIf, line);
    while (true) {
      Branch& branch = stmt->branches.emplace_back();
      MM01_ASSIGN_OR_RETURN(branch.condition, in_.TupleOrExpression(false));
      MM01_RETURN_IF_ERROR(BlockEnd());
      MM01_ASSIGN_OR_RETURN(branch.body, Statements({"elif", "else", "endif"}));
      if (!in_.SkipName("elif")) break;
    }
    if (in_.SkipName("else")) {
      MM01_ASSIGN_OR_RETURN(stmt->branches.emplace_back().body, BodyUntil("endif"));
      return stmt;
    }
    in_.Skip();
    MM01_RETURN_IF_ERROR(BlockEnd());
    return stmt;
  }

  Result<StmtPtr> For(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kFor, line);
    MM01_ASSIGN_OR_RETURN(stmt->target, in_.Target());
    if (!in_.SkipName("in")) return in_.Error(line, "'for' without 'in'");
    MM01_ASSIGN_OR_RETURN(stmt->expr, in_.TupleOrExpression(false));
    if (in_.SkipName("if")) {
      MM01_ASSIGN_OR_RETURN(stmt->condition, in_.Expression());
    }
    if (in_.AtName("recursive")) return in_.Unsupported(line, "a loop marked 'recursive'");
    MM01_RETURN_IF_ERROR(BlockEnd());
    ++loops_;
    MM01_ASSIGN_OR_RETURN(stmt->body, Statements({"else", "endfor"}));
    --loops_;
    if (in_.SkipName("else")) {
      MM01_ASSIGN_OR_RETURN(stmt->otherwise, BodyUntil("endfor"));
      return stmt;
    }
    in_.Skip();
    MM01_RETURN_IF_ERROR(BlockEnd());
    return stmt;
  }

  // A chain of filters to be applied to a body.
  Result<ExprPtr> BodyFilters(int line, bool begun) {
    auto chain = std::make_unique<Expr>(ExprKind::kChain, line);
    chain->args.push_back(std::make_unique<Expr>(ExprKind::kName, line));
    Borrow(kBodyName, true, chain->args[0]->text);
    MM01_RETURN_IF_ERROR(in_.Filters(*chain, begun));
    return chain;
  }

  Result<StmtPtr> Set(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kSet, line);
    MM01_ASSIGN_OR_RETURN(stmt->target, in_.Target());
    if (in_.SkipOperator("=")) {
      MM01_ASSIGN_OR_RETURN(stmt->expr, in_.TupleOrExpression());
      MM01_RETURN_IF_ERROR(BlockEnd());
      return stmt;
    }
    stmt->kind = StmtKind::kSetBlock;
    if (in_.AtOperator("|")) {
      MM01_ASSIGN_OR_RETURN(stmt->expr, BodyFilters(line, false));
    }
    MM01_ASSIGN_OR_RETURN(stmt->body, ClosedBodyUntil("endset"));
    return stmt;
  }

  Result<StmtPtr> FilterBlock(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kFilterBlock, line);
    MM01_ASSIGN_OR_RETURN(stmt->expr, BodyFilters(line, true));
    MM01_ASSIGN_OR_RETURN(stmt->body, ClosedBodyUntil("endfilter"));
    return stmt;
  }

  Result<StmtPtr> DefineMacro(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kMacro, line);
    stmt->macro = std::make_unique<Macro>();
    std::string name;
    MM01_RETURN_IF_ERROR(in_.TakeName("the name of a macro", name));
    Own(std::move(name), true, stmt->macro->name);
    MM01_ASSIGN_OR_RETURN(stmt->macro->parameters, in_.Parameters());
    MM01_ASSIGN_OR_RETURN(stmt->macro->body, ClosedBodyUntil("endmacro"));
    return stmt;
  }

  Result<StmtPtr> With(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kWith, line);
    while (in_.Now().kind != TokenKind::kBlockEnd) {
      if (!stmt->assignments.empty()) MM01_RETURN_IF_ERROR(in_.ExpectOperator(","));
      auto& [target, value] = stmt->assignments.emplace_back();
      MM01_ASSIGN_OR_RETURN(target, in_.Target());
      MM01_RETURN_IF_ERROR(in_.ExpectOperator("="));
      MM01_ASSIGN_OR_RETURN(value, in_.Expression());
    }
    MM01_ASSIGN_OR_RETURN(stmt->body, BodyUntil("endwith"));
    return stmt;
  }

  Result<StmtPtr> Generation(int line) {
    auto stmt = std::make_unique<Stmt>(StmtKind::kScope, line);
    MM01_ASSIGN_OR_RETURN(stmt->body, ClosedBodyUntil("endgeneration"));
    return stmt;
  }

  Result<StmtPtr> Jump(int line, std::string_view tag) {
    if (loops_ == 0) return in_.Error(line, fmt::format("'{{% {} %}}' outside a loop", tag));
    MM01_RETURN_IF_ERROR(BlockEnd());
    return std::make_unique<Stmt>(tag == "break" ? StmtKind::kBreak : StmtKind::kContinue, line);
  }

  ExpressionParser in_;
  int loops_ = 0;  // around the current statement, that a {% break %} can leave
};

}  // namespace

Result<Body> ParseTemplate(std::string_view source, const std::string& where) {
  MM01_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source, where));
  return Parser(std::move(tokens), where).Run();
}

}  // namespace mm01::jinja
