// Values as text: str, repr and json.dumps of Python.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"
#include "io/jinja/value.h"

namespace mm01::jinja {

// str(v), as {{ v }} prints it. A string keeps its runs; what is printed of any other value is
// untrusted as a whole if a part of it is.
Result<Value> ToString(Runtime& rt, const Value& v);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;  // one level of it; none: all in one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};

// json.dumps(v), untrusted as a whole if a part of v is.
Result<Value> ToJsonText(Runtime& rt, const Value& v, const JsonStyle& style);

// repr of a float: the shortest decimal that reads back as f.
std::string FormatFloat(double f);

// & < > ' " as HTML entities, which is what markupsafe does to what meets a string marked safe.
void AppendEscaped(const Text& text, TextBuilder& out);
Value MarkSafe(Runtime& rt, const Value& string);

}  // namespace mm01::jinja
