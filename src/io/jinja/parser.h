// Tokens to syntax tree. See chat_template.h for the language.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "io/jinja/ast.h"

namespace mm01::jinja {

// Errors name `where`, the line and the construct. A construct of Jinja2 that is not supported, a
// filter or a test included, is refused here and not when it is reached.
Result<Body> ParseTemplate(std::string_view source, const std::string& where);

}  // namespace mm01::jinja
