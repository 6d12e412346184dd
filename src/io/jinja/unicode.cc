#include "io/jinja/unicode.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include "io/jinja/text.h"
#include "io/jinja/unicode_tables.h"

namespace mm01::jinja {
namespace {

using tables::Mapping;
using tables::Range;
using tables::Special;

template <size_t kSize>
bool In(const Range (&ranges)[kSize], uint32_t c) {
  const Range* r = std::upper_bound(std::begin(ranges), std::end(ranges), c,
                                    [](uint32_t at, const Range& x) { return at < x.first; });
  return r != std::begin(ranges) && c <= r[-1].last;
}

template <size_t kSize>
bool AppendSpecial(const Special (&specials)[kSize], uint32_t c, std::string& out) {
  const Special* s = std::lower_bound(std::begin(specials), std::end(specials), c,
                                      [](const Special& x, uint32_t at) { return x.from < at; });
  if (s == std::end(specials) || s->from != c) return false;
  out += s->to;
  return true;
}

template <size_t kSize>
void AppendMapped(const Mapping (&mappings)[kSize], uint32_t c, std::string& out) {
  const Mapping* m = std::upper_bound(std::begin(mappings), std::end(mappings), c,
                                      [](uint32_t at, const Mapping& x) { return at < x.first; });
  // Ranges with a stride may interleave, two at a time.
  for (int back = 1; back <= 2 && m - back >= std::begin(mappings); ++back) {
    const Mapping& hit = m[-back];
    if (c <= hit.last && (c - hit.first) % hit.stride == 0) return AppendUtf8(c + hit.delta, out);
  }
  AppendUtf8(c, out);
}

}  // namespace

bool IsSpace(uint32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

bool IsLineBreak(uint32_t c) {
  return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

bool IsPrintable(uint32_t c) {
  return !In(tables::kUnprintable, c);
}
bool IsCased(uint32_t c) {
  return In(tables::kCased, c);
}
bool IsCaseIgnorable(uint32_t c) {
  return In(tables::kCaseIgnorable, c);
}

void AppendUpper(uint32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c >= 'a' && c <= 'z' ? c - 32 : c);
    return;
  }
  if (!AppendSpecial(tables::kUpperSpecial, c, out)) AppendMapped(tables::kUpper, c, out);
}

void AppendLower(uint32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    return;
  }
  if (!AppendSpecial(tables::kLowerSpecial, c, out)) AppendMapped(tables::kLower, c, out);
}

void AppendTitle(uint32_t c, std::string& out) {
  if (!AppendSpecial(tables::kTitleSpecial, c, out)) AppendUpper(c, out);
}

}  // namespace mm01::jinja
