// Python's str methods on texts with runs. Positions are bytes.
#pragma once

#include <optional>
#include <vector>

#include "base/status.h"
#include "io/jinja/value.h"

namespace mm01::jinja {

// `chars` null: white space.
Value Strip(Runtime& rt, const Text& s, const Text* chars, bool left, bool right);

enum class Case { kUpper, kLower, kTitle, kCapitalize };
Result<Value> ChangeCase(Runtime& rt, const Text& s, Case to);
// The filter `title`, which upper-cases after blanks and opening brackets only.
Result<Value> TitleWords(Runtime& rt, const Text& s);

// count < 0: all of them.
Result<Value> Replace(Runtime& rt, const Text& s, const Text& from, const Text& to, int64_t count);

// `separator` null: runs of white space. max_splits < 0: no limit. `from_right`: rsplit.
Result<Value> Split(Runtime& rt, const Text& s, const Text* separator, int64_t max_splits,
                    bool from_right);
std::vector<Value> SplitLines(Runtime& rt, const Text& s, bool keep_ends);

// Every item printed, `separator` between them.
Result<Value> Join(Runtime& rt, const std::vector<Value>& items, const Text& separator);
// The filter `indent`: `indention` before every line but the first; before empty ones if `blank`.
Result<Value> Indent(Runtime& rt, const Text& s, const Text& indention, bool first, bool blank);
Result<Value> Reverse(Runtime& rt, const Text& s);

// int(s) and float(s) of Python, if s spells one.
std::optional<int64_t> ParseInt(std::string_view s, int64_t base, bool* overflow);
std::optional<double> ParseFloat(std::string_view s);

}  // namespace mm01::jinja
