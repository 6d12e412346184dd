#include "io/regex_dialect.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>

namespace mm01 {
namespace {

// White_Space of Unicode and the rest: what \s and \S are to Oniguruma.
constexpr std::string_view kSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNotSpace =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff})"
    R"(\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
// As Oniguruma has it, superscripts and fractions of Latin-1 included.
constexpr std::string_view kWord =
    R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})";

constexpr auto kCategories = std::to_array<std::string_view>(
    {"C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo", "Lt", "Lu", "M",
     "Mc", "Me", "Mn", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Pe", "Pf", "Pi",
     "Po", "Ps", "S",  "Sc", "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs"});

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}
bool IsLetter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

class Translator {
 public:
  explicit Translator(std::string_view in) : in_(in) {}

  Result<std::string> Run() {
    while (at_ < in_.size()) {
      switch (in_[at_]) {
        case '\\':
          MM01_RETURN_IF_ERROR(Escape(/*in_class=*/false));
          break;
        case '[':
          MM01_RETURN_IF_ERROR(Class());
          break;
        case '(':
          MM01_RETURN_IF_ERROR(Group());
          break;
        case '{':
          MM01_RETURN_IF_ERROR(Interval());
          break;
        default:
          out_ += in_[at_++];
      }
    }
    return std::move(out_);
  }

 private:
  bool Starts(std::string_view s) const { return in_.substr(at_).starts_with(s); }

  Status Refuse(std::string_view what) const {
    return Status::Unsupported(fmt::format("{} at byte {} of the pattern", what, at_));
  }

  Status Group() {
    constexpr auto kGroups = std::to_array<std::string_view>(
        {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"});
    if (!Starts("(?") && !Starts("(*")) {
      out_ += in_[at_++];
      return Status::Ok();
    }
    for (const std::string_view group : kGroups) {
      if (!Starts(group)) continue;
      out_ += group;
      at_ += group.size();
      return Status::Ok();
    }
    return Refuse("a group that is none of (, (?:, (?=, (?!, (?<=, (?<!, (?>, (?i: and (?-i:");
  }

  // {n}, {n,}, {n,m} or {,m}; any other brace is a literal.
  Status Interval() {
    size_t p = at_ + 1;
    const auto digits = [&] {
      const size_t begin = p;
      while (p < in_.size() && IsDigit(in_[p])) ++p;
      return in_.substr(begin, p - begin);
    };
    const std::string_view low = digits();
    const bool comma = p < in_.size() && in_[p] == ',';
    if (comma) ++p;
    const std::string_view high = comma ? digits() : low;
    if (p == in_.size() || in_[p] != '}' || (low.empty() && high.empty())) {
      out_ += "\\{";
      ++at_;
      return Status::Ok();
    }
    const char next = p + 1 < in_.size() ? in_[p + 1] : '\0';
    if (next == '+') return Refuse("{}+ (which repeats here and is possessive elsewhere)");
    if (next == '?' && !comma) return Refuse("{n}? (which is optional here and lazy elsewhere)");
    out_ += comma ? fmt::format("{{{},{}}}", low.empty() ? "0" : low, high)
                  : fmt::format("{{{}}}", low);
    at_ = p + 1;
    return Status::Ok();
  }

  Status Class() {
    out_ += in_[at_++];
    if (Starts("^")) out_ += in_[at_++];
    if (Starts("]")) return Refuse("a class that starts with ]");
    last_was_set_ = false;
    for (bool first = true; at_ < in_.size(); first = false) {
      const char c = in_[at_];
      if (c == ']') {
        out_ += in_[at_++];
        return Status::Ok();
      }
      if (c == '[') return Refuse("[ inside a class (write \\[)");
      if (Starts("&&")) return Refuse("&& inside a class");
      if (c == '\\') {
        MM01_RETURN_IF_ERROR(Escape(/*in_class=*/true));
        continue;
      }
      // Next to a set, - is a literal in one dialect and an error or a range in the other.
      const char next = at_ + 1 < in_.size() ? in_[at_ + 1] : '\0';
      if (c == '-' && !first && next != ']' && (last_was_set_ || StartsSet(at_ + 1))) {
        return Refuse("- next to a set inside a class (write \\-)");
      }
      last_was_set_ = false;
      out_ += c;
      ++at_;
    }
    return Refuse("a class without ]");
  }

  bool StartsSet(size_t p) const {
    return p + 1 < in_.size() && in_[p] == '\\' &&
           std::string_view("sSdDwWpP").find(in_[p + 1]) != std::string_view::npos;
  }

  Status Escape(bool in_class) {
    if (at_ + 1 == in_.size()) return Refuse("a lone backslash");
    const char c = in_[at_ + 1];
    last_was_set_ = StartsSet(at_);
    if (c == 'p' || c == 'P') return Property(c == 'P');
    if (c == 'x' || c == 'u') return CodePointEscape();
    if (last_was_set_) return Set(c, in_class);
    if (c == 'v') {
      out_ += "\\x{b}";
    } else if (std::string_view("nrtfae").find(c) != std::string_view::npos ||
               (!in_class && (c == 'A' || c == 'z' || c == 'Z')) || !(IsLetter(c) || IsDigit(c))) {
      out_ += {'\\', c};
    } else {
      return Refuse(fmt::format("\\{}", c));
    }
    at_ += 2;
    return Status::Ok();
  }

  Status Set(char c, bool in_class) {
    if (c == 'd' || c == 'D') {
      out_ += c == 'd' ? "\\p{Nd}" : "\\P{Nd}";
    } else if (in_class) {
      if (c == 'W') return Refuse("\\W inside a class");
      out_ += c == 's' ? kSpace : c == 'S' ? kNotSpace : kWord;
    } else {
      const bool negated = c == 'S' || c == 'W';
      out_ += fmt::format("[{}{}]", negated ? "^" : "", c == 's' || c == 'S' ? kSpace : kWord);
    }
    at_ += 2;
    return Status::Ok();
  }

  Status Property(bool negated) {
    const size_t close = in_.find('}', at_);
    if (!in_.substr(at_ + 2).starts_with('{') || close == std::string_view::npos) {
      return Refuse("\\p without {name}");
    }
    std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    const bool plain =
        std::all_of(name.begin(), name.end(), [](char c) { return IsLetter(c) || c == '_'; });
    if (name.empty() || name.size() > 40 || !plain) return Refuse("a property without a name");
    // Without sc: PCRE2 would take script extensions.
    const bool category =
        std::find(kCategories.begin(), kCategories.end(), name) != kCategories.end();
    out_ += fmt::format("\\{}{{{}{}}}", negated ? 'P' : 'p', category ? "" : "sc:", name);
    at_ = close + 1;
    return Status::Ok();
  }

  // \xHH, \x{H...} and \uHHHH.
  Status CodePointEscape() {
    std::string_view digits;
    size_t end;
    if (in_.substr(at_).starts_with("\\x{")) {
      const size_t close = std::min(in_.find('}', at_), in_.size());
      digits = in_.substr(at_ + 3, close - at_ - 3);
      end = close + 1;
    } else {
      const size_t count = in_[at_ + 1] == 'u' ? 4 : 2;
      digits = in_.substr(at_ + 2, count);
      end = at_ + 2 + count;
      if (digits.size() < count) return Refuse("an escape with too few digits");
    }
    uint32_t value = 0;
    const auto [stop, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (error != std::errc() || stop != digits.data() + digits.size() || value > 0x10FFFF ||
        (value >= 0xD800 && value < 0xE000)) {
      return Refuse("an escape that names no code point");
    }
    // \x80 and up without braces are single bytes to Oniguruma.
    if (in_[at_ + 1] == 'x' && in_[at_ + 2] != '{' && value >= 0x80)
      return Refuse("\\x80 or above");
    out_ += fmt::format("\\x{{{:x}}}", value);
    at_ = end;
    return Status::Ok();
  }

  std::string_view in_;
  size_t at_ = 0;
  bool last_was_set_ = false;  // the class member just written was a set, not one character
  std::string out_;
};

}  // namespace

Result<std::string> OnigurumaToPcre2(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace mm01
