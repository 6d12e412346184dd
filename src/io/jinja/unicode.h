// The parts of Unicode 14 that Python's str methods use (CPython 3.11). The tables are written
// by tools/make_template_goldens.py --unicode.
#pragma once

#include <cstdint>
#include <string>

namespace mm01::jinja {

bool IsSpace(uint32_t c);      // str.isspace, and \s of the module re
bool IsLineBreak(uint32_t c);  // where str.splitlines cuts
bool IsPrintable(uint32_t c);  // what repr leaves alone
bool IsCased(uint32_t c);
bool IsCaseIgnorable(uint32_t c);

// Append the full case mapping of one code point, as UTF-8. The rule for a final sigma depends on
// the neighbours and is the caller's.
void AppendUpper(uint32_t c, std::string& out);
void AppendLower(uint32_t c, std::string& out);
void AppendTitle(uint32_t c, std::string& out);

}  // namespace mm01::jinja
