#include "io/jinja/strings.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "io/jinja/format.h"
#include "io/jinja/unicode.h"

namespace mm01::jinja {
namespace {

// rfind compares at every byte, so what it looks for must be short.
constexpr size_t kMaxRightSeparator = 64;

// Units of budget for a byte: to look at letters costs more than to copy them.
constexpr size_t kLookCost = 4;
constexpr size_t kCaseCost = 8;

// Byte offset of the code point that ends at `end` > 0.
size_t Before(std::string_view s, size_t end) {
  do {
    --end;
  } while (end > 0 && (s[end] & 0xc0) == 0x80);
  return end;
}

// The rule of Unicode for a capital sigma at `pos`: final if letters come before and none after.
bool IsFinalSigma(std::string_view s, size_t pos, size_t n) {
  size_t length;
  size_t at = pos;
  bool cased_before = false;
  while (at > 0) {
    at = Before(s, at);
    const uint32_t c = DecodeUtf8(s, at, &length);
    if (IsCaseIgnorable(c)) continue;
    cased_before = IsCased(c);
    break;
  }
  if (!cased_before) return false;
  for (at = pos + n; at < s.size(); at += length) {
    const uint32_t c = DecodeUtf8(s, at, &length);
    if (!IsCaseIgnorable(c)) return !IsCased(c);
  }
  return true;
}

// Walks the code points of a text together with their runs.
class Walker {
 public:
  explicit Walker(const Text& text) : text_(text), run_(text.runs.begin()) {}

  bool Done() const { return pos >= text_.size(); }
  uint32_t Load() {
    if (pos >= run_->end) ++run_;
    return DecodeUtf8(text_.view, pos, &length);
  }
  bool trusted() const { return run_->trusted; }
  void Advance() { pos += length; }

  size_t pos = 0;
  size_t length = 0;

 private:
  const Text& text_;
  std::vector<Run>::const_iterator run_;
};

void AppendLowerAt(std::string_view s, size_t pos, size_t length, uint32_t c, std::string& out) {
  constexpr uint32_t kCapitalSigma = 0x3a3;
  if (c != kCapitalSigma) return AppendLower(c, out);
  out += IsFinalSigma(s, pos, length) ? "\u03c2" : "\u03c3";
}

bool InSet(uint32_t c, const Text* chars, std::string& scratch) {
  if (!chars) return IsSpace(c);
  scratch.clear();
  AppendUtf8(c, scratch);
  return chars->view.find(scratch) != std::string_view::npos;
}

Result<Value> NewList(Runtime& rt, std::vector<Value> items) {
  return rt.NewSeq(SeqKind::kList, std::move(items));
}

Status TooManyPieces() {
  return Status::TooLarge(fmt::format("a string splits into more than {} pieces", kMaxItems));
}

Result<Value> SplitAtSpace(Runtime& rt, const Text& s, int64_t max_splits, bool from_right) {
  std::vector<std::pair<size_t, size_t>> words;
  size_t n, begin = 0;
  bool in_word = false;
  for (size_t at = 0; at < s.size(); at += n) {
    const bool space = IsSpace(DecodeUtf8(s.view, at, &n));
    if (!space && !in_word) begin = at;
    if (space && in_word) words.emplace_back(begin, at);
    in_word = !space;
  }
  if (in_word) words.emplace_back(begin, s.size());
  const size_t limit = static_cast<size_t>(max_splits) + 1;
  if (max_splits >= 0 && words.size() > limit) {
    if (from_right) {
      // The piece at the left keeps its inner and leading blanks, not those at its end.
      words.erase(words.begin() + 1, words.end() - (limit - 1));
      const size_t last = words.size() > 1 ? words[1].first : s.size();
      words[0] = {0, last};
      while (words[0].second > 0) {
        const size_t before = Before(s.view, words[0].second);
        if (!IsSpace(DecodeUtf8(s.view, before, &n))) break;
        words[0].second = before;
      }
    } else {
      words.resize(limit);
      words.back().second = s.size();
    }
  }
  if (words.size() > static_cast<size_t>(kMaxItems)) return TooManyPieces();
  std::vector<Value> pieces;
  for (const auto& [from, to] : words) pieces.push_back(rt.Slice(s, from, to));
  return NewList(rt, std::move(pieces));
}

}  // namespace

Value Strip(Runtime& rt, const Text& s, const Text* chars, bool left, bool right) {
  size_t begin = 0, end = s.size(), n;
  std::string scratch;
  const auto strips = [&](uint32_t c) {
    return rt.budget.Bytes(kLookCost + (chars ? chars->size() : 0)) && InSet(c, chars, scratch);
  };
  while (left && begin < end && strips(DecodeUtf8(s.view, begin, &n))) begin += n;
  while (right && end > begin) {
    const size_t before = Before(s.view, end);
    if (!strips(DecodeUtf8(s.view, before, &n))) break;
    end = before;
  }
  return rt.Slice(s, begin, end);
}

Result<Value> ChangeCase(Runtime& rt, const Text& s, Case to) {
  TextBuilder builder(rt.budget);
  rt.budget.Bytes(kCaseCost * s.size());
  std::string mapped;  // what is not in `builder` yet, all of the trust of the letter before
  bool in_word = false, trusted = true;
  for (Walker w(s); !w.Done() && !rt.budget.spent(); w.Advance()) {
    const uint32_t c = w.Load();
    if (w.trusted() != trusted) {
      builder.Append(mapped, trusted);
      mapped.clear();
      trusted = w.trusted();
    }
    if (to == Case::kUpper) {
      AppendUpper(c, mapped);
    } else if (to == Case::kLower || in_word) {
      AppendLowerAt(s.view, w.pos, w.length, c, mapped);
    } else {
      AppendTitle(c, mapped);
    }
    in_word = to == Case::kCapitalize || (to == Case::kTitle && IsCased(c));
  }
  builder.Append(mapped, trusted);
  return rt.Built(std::move(builder));
}

Result<Value> TitleWords(Runtime& rt, const Text& s) {
  rt.budget.Bytes(kCaseCost * s.size());
  // Each word is lower-cased alone, so a final sigma ends at the word and not at the text.
  TextBuilder builder(rt.budget);
  std::string mapped;
  const auto is_border = [](uint32_t c) {
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || IsSpace(c);
  };
  size_t word_end = 0, word_tail = 0;
  for (Walker w(s); !w.Done() && !builder.full(); w.Advance()) {
    const uint32_t c = w.Load();
    mapped.clear();
    if (is_border(c)) {
      AppendUtf8(c, mapped);
      word_end = 0;
    } else if (w.pos >= word_end) {
      AppendUpper(c, mapped);
      word_tail = w.pos + w.length;
      size_t n = w.length;
      for (word_end = word_tail; word_end < s.size(); word_end += n) {
        if (is_border(DecodeUtf8(s.view, word_end, &n))) break;
      }
    } else {
      AppendLowerAt(s.view.substr(word_tail, word_end - word_tail), w.pos - word_tail, w.length, c,
                    mapped);
    }
    builder.Append(mapped, w.trusted());
  }
  return rt.Built(std::move(builder));
}

Result<Value> Replace(Runtime& rt, const Text& s, const Text& from, const Text& to, int64_t count) {
  TextBuilder builder(rt.budget);
  rt.budget.Bytes(s.size());
  size_t at = 0;
  if (from.size() == 0) {
    // Before every code point, and at the end.
    for (; count != 0 && at < s.size() && !builder.full(); --count) {
      const size_t n = OffsetOf(s.view.substr(at), 1);
      builder.Append(to);
      builder.Append(s, at, at + n);
      at += n;
    }
    builder.Append(s, at, s.size());
    if (count != 0) builder.Append(to);
    return rt.Built(std::move(builder));
  }
  for (; count != 0 && !builder.full(); --count) {
    const size_t hit = Find(s.view, from.view, at);
    if (hit == std::string_view::npos) break;
    builder.Append(s, at, hit);
    builder.Append(to);
    at = hit + from.size();
    rt.budget.Items(1);
  }
  builder.Append(s, at, s.size());
  return rt.Built(std::move(builder));
}

Result<Value> Split(Runtime& rt, const Text& s, const Text* separator, int64_t max_splits,
                    bool from_right) {
  rt.budget.Bytes(kLookCost * s.size());
  if (!separator) return SplitAtSpace(rt, s, max_splits, from_right);
  if (separator->size() == 0) return Status::Invalid("a split at an empty separator");
  std::vector<Value> pieces;
  if (from_right) {
    if (separator->size() > kMaxRightSeparator) {
      return Status::Unsupported(
          fmt::format("rsplit at more than {} bytes is not supported", kMaxRightSeparator));
    }
    size_t end = s.size();
    while (max_splits-- != 0 && end >= separator->size()) {
      const size_t hit = s.view.substr(0, end).rfind(separator->view);
      rt.budget.Bytes((end - (hit == std::string_view::npos ? 0 : hit)) * separator->size());
      if (hit == std::string_view::npos || rt.budget.spent()) break;
      pieces.push_back(rt.Slice(s, hit + separator->size(), end));
      end = hit;
      if (pieces.size() >= static_cast<size_t>(kMaxItems)) return TooManyPieces();
    }
    pieces.push_back(rt.Slice(s, 0, end));
    std::reverse(pieces.begin(), pieces.end());
    return NewList(rt, std::move(pieces));
  }
  size_t at = 0;
  while (max_splits-- != 0 && !rt.budget.spent()) {
    const size_t hit = Find(s.view, separator->view, at);
    if (hit == std::string_view::npos) break;
    pieces.push_back(rt.Slice(s, at, hit));
    at = hit + separator->size();
    if (pieces.size() >= static_cast<size_t>(kMaxItems)) return TooManyPieces();
  }
  pieces.push_back(rt.Slice(s, at, s.size()));
  return NewList(rt, std::move(pieces));
}

std::vector<Value> SplitLines(Runtime& rt, const Text& s, bool keep_ends) {
  rt.budget.Bytes(kLookCost * s.size());
  std::vector<Value> lines;
  size_t begin = 0, n;
  for (size_t at = 0; at < s.size() && !rt.budget.spent();) {
    if (!IsLineBreak(DecodeUtf8(s.view, at, &n))) {
      at += n;
      continue;
    }
    const size_t line_end = at;
    at += n;
    if (s.view[line_end] == '\r' && at < s.size() && s.view[at] == '\n') ++at;
    lines.push_back(rt.Slice(s, begin, keep_ends ? at : line_end));
    rt.budget.Items(1);
    begin = at;
  }
  if (begin < s.size()) lines.push_back(rt.Slice(s, begin, s.size()));
  return lines;
}

Result<Value> Join(Runtime& rt, const std::vector<Value>& items, const Text& separator) {
  TextBuilder builder(rt.budget);
  for (size_t i = 0; i < items.size() && !builder.full(); ++i) {
    if (i > 0) builder.Append(separator);
    MM01_ASSIGN_OR_RETURN(const Value item, ToString(rt, items[i]));
    builder.Append(*item.text);
  }
  return rt.Built(std::move(builder));
}

Result<Value> Indent(Runtime& rt, const Text& s, const Text& indention, bool first, bool blank) {
  TextBuilder with_newline(rt.budget);
  with_newline.Append(s);
  with_newline.Append("\n", true);
  MM01_ASSIGN_OR_RETURN(const Value text, rt.Built(std::move(with_newline)));
  TextBuilder builder(rt.budget);
  const std::vector<Value> lines = SplitLines(rt, *text.text, false);
  if (first) builder.Append(indention);
  for (size_t i = 0; i < lines.size() && !builder.full(); ++i) {
    if (i > 0) {
      builder.Append("\n", s.AllTrusted());
      if (blank || lines[i].text->size() > 0) builder.Append(indention);
    }
    builder.Append(*lines[i].text);
  }
  return rt.Built(std::move(builder));
}

Result<Value> Reverse(Runtime& rt, const Text& s) {
  TextBuilder builder(rt.budget);
  for (size_t end = s.size(); end > 0 && !builder.full();) {
    const size_t begin = Before(s.view, end);
    builder.Append(s, begin, end);
    end = begin;
  }
  return rt.Built(std::move(builder));
}

namespace {

// Without the white space around it; nullopt if underscores do not stand between digits.
std::optional<std::string> BareNumber(std::string_view s) {
  size_t n;
  while (!s.empty() && IsSpace(DecodeUtf8(s, 0, &n))) s.remove_prefix(n);
  while (!s.empty()) {
    const size_t last = Before(s, s.size());
    if (!IsSpace(DecodeUtf8(s, last, &n))) break;
    s = s.substr(0, last);
  }
  std::string bare;
  for (size_t i = 0; i < s.size(); ++i) {
    if (s[i] != '_') {
      bare += s[i];
    } else if (i == 0 || i + 1 == s.size() || !isxdigit(static_cast<uint8_t>(s[i - 1])) ||
               !isxdigit(static_cast<uint8_t>(s[i + 1]))) {
      return std::nullopt;
    }
  }
  return bare;
}

}  // namespace

std::optional<int64_t> ParseInt(std::string_view s, int64_t base, bool* overflow) {
  *overflow = false;
  const auto bare = BareNumber(s);
  if (!bare || bare->empty()) return std::nullopt;
  const char* begin = bare->data();
  const char* end = begin + bare->size();
  if (*begin == '+') ++begin;
  if (begin == end || (begin != bare->data() && *begin == '-')) return std::nullopt;
  int64_t i = 0;
  const auto [stop, error] = std::from_chars(begin, end, i, static_cast<int>(base));
  if (stop != end || error == std::errc::invalid_argument) return std::nullopt;
  *overflow = error == std::errc::result_out_of_range;
  return i;
}

std::optional<double> ParseFloat(std::string_view s) {
  const auto bare = BareNumber(s);
  if (!bare || bare->empty()) return std::nullopt;
  const char* begin = bare->data();
  const char* end = begin + bare->size();
  if (*begin == '+') ++begin;
  if (begin == end || (begin != bare->data() && *begin == '-')) return std::nullopt;
  if (bare->find('(') != std::string::npos) return std::nullopt;  // nan(...) is C's alone
  double f = 0;
  const auto [stop, error] = std::from_chars(begin, end, f);
  if (stop != end || error == std::errc::invalid_argument) return std::nullopt;
  if (error == std::errc::result_out_of_range) return std::strtod(begin, nullptr);
  return f;
}

}  // namespace mm01::jinja
