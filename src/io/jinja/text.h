// Strings that remember where they came from.
//
// A Text is UTF-8 cut into runs; a run is trusted when the template wrote it and untrusted when the
// request did. Every operation carries the runs along, so that the output can say which bytes may
// spell special tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/jinja/budget.h"
#include "io/utf8.h"

namespace mm01::jinja {

struct Run {
  size_t end;  // byte offset of the first byte after the run
  bool trusted;
};

struct Text {
  Text() = default;
  Text(const Text&) = delete;  // `view` may point into `owned`
  Text& operator=(const Text&) = delete;

  size_t size() const { return view.size(); }
  bool AllTrusted() const;

  std::string owned;
  std::string_view view;  // into `owned`, or borrowed from what outlives the rendering
  std::vector<Run> runs;  // ascending ends, the last one is size(); neighbours differ
  bool markup = false;    // went through the filter `safe`: `+` escapes what it meets
};

// Fills an empty `text` with `bytes`, as one run. Borrowed bytes must outlive it.
void Borrow(std::string_view bytes, bool trusted, Text& text);
void Own(std::string bytes, bool trusted, Text& text);

class TextBuilder {
 public:
  explicit TextBuilder(Budget& budget) : budget_(&budget) {}

  void Append(std::string_view bytes, bool trusted);
  void Append(const Text& text) { Append(text, 0, text.size()); }
  void Append(const Text& text, size_t begin, size_t end);

  // More than kMaxTextBytes were appended, or the budget is spent: what is built is not complete.
  bool full() const { return full_; }
  size_t size() const { return bytes_.size(); }

  // Moves what was built into an empty `text`.
  void MoveTo(Text& text);

 private:
  Budget* budget_;
  std::string bytes_;
  std::vector<Run> runs_;
  bool full_ = false;
};

// The code point that begins at byte `pos` < s.size() of valid UTF-8, and its length in bytes.
inline uint32_t DecodeUtf8(std::string_view s, size_t pos, size_t* length) {
  const CodePoint c = mm01::DecodeUtf8(s.substr(pos));
  *length = c.length;
  return c.value;
}

size_t CountCodePoints(std::string_view s);
// Byte offset of code point number `index` <= CountCodePoints(s).
size_t OffsetOf(std::string_view s, size_t index);

// First occurrence of `needle` at or after `from`, npos if there is none. Linear in s.size().
size_t Find(std::string_view s, std::string_view needle, size_t from = 0);

}  // namespace mm01::jinja
