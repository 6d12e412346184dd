// The text of a template as tokens, with Jinja2's rules for white space as transformers sets them:
// trim_blocks (the newline after a block goes), lstrip_blocks (blanks before a block go), and one
// newline at the end of the source goes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace mm01::jinja {

enum class TokenKind {
  kData,        // text between the tags; `text` is what is to be printed
  kBlockBegin,  // {%
  kBlockEnd,
  kPrintBegin,  // {{
  kPrintEnd,
  kName,
  kString,  // `text` is the string itself, escapes resolved
  kInt,     // `text` without underscores; may start with 0x, 0o, 0b
  kFloat,
  kOperator,  // `text` is the operator
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
};

// Ends with one kEnd. `where` begins every error.
Result<std::vector<Token>> Tokenize(std::string_view source, const std::string& where);

}  // namespace mm01::jinja
