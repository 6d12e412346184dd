#include "io/jinja/lexer.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "io/jinja/budget.h"
#include "io/jinja/text.h"
#include "io/jinja/unicode.h"

namespace mm01::jinja {
namespace {

constexpr auto kNone = std::string_view::npos;

std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  return out;
}

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}
bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool IsNamePart(char c) {
  return IsNameStart(c) || IsDigit(c);
}

class Lexer {
 public:
  Lexer(std::string source, const std::string& where) : source_(std::move(source)), where_(where) {
    if (!source_.empty() && source_.back() == '\n') source_.pop_back();
  }

  Result<std::vector<Token>> Run() {
    while (pos_ < source_.size()) MM01_RETURN_IF_ERROR(DataAndTag());
    Add(TokenKind::kEnd, "the end of the template");
    return std::move(tokens_);
  }

 private:
  std::string_view Rest() const { return std::string_view(source_).substr(pos_); }
  bool At(std::string_view s) const { return Rest().starts_with(s); }

  void Advance(size_t n) {
    line_ += static_cast<int>(std::count(source_.begin() + pos_, source_.begin() + pos_ + n, '\n'));
    pos_ += n;
  }
  void Add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  Status Error(std::string_view what) const {
    return Status::Invalid(fmt::format("{}: line {}: {}", where_, line_, what));
  }

  void SkipSpace() {
    while (pos_ < source_.size()) {
      size_t n;
      if (!IsSpace(DecodeUtf8(source_, pos_, &n))) return;
      Advance(n);
    }
  }

  // Prints `text`, which stands before a tag that begins with `sign` (0: none). Blanks between the
  // last newline and a tag that is no print go unless the sign is '+'.
  void AddData(std::string_view text, char sign, bool is_print) {
    size_t end = text.size();
    const auto space_before = [&](size_t at, size_t* begin) {
      *begin = at - 1;
      while (*begin > 0 && (text[*begin] & 0xc0) == 0x80) --*begin;
      size_t n;
      return IsSpace(DecodeUtf8(text, *begin, &n));
    };
    size_t begin;
    if (sign == '-') {
      while (end > 0 && space_before(end, &begin)) end = begin;
    } else if (sign != '+' && !is_print) {
      const size_t newline = text.rfind('\n');
      const size_t line_start = newline == kNone ? 0 : newline + 1;
      if (newline != kNone || line_starting_) {
        size_t at = end;
        while (at > line_start && space_before(at, &begin)) at = begin;
        if (at == line_start) end = at;
      }
    }
    if (end > 0) Add(TokenKind::kData, std::string(text.substr(0, end)));
  }

  Status DataAndTag() {
    size_t open = pos_;
    while ((open = source_.find('{', open)) != kNone && open + 1 < source_.size() &&
           source_[open + 1] != '%' && source_[open + 1] != '{' && source_[open + 1] != '#') {
      ++open;
    }
    if (open == kNone || open + 1 >= source_.size()) {
      Add(TokenKind::kData, std::string(Rest()));
      Advance(Rest().size());
      return Status::Ok();
    }
    const char type = source_[open + 1];
    const char next = open + 2 < source_.size() ? source_[open + 2] : '\0';
    const char sign = next == '-' || next == '+' ? next : '\0';
    AddData(std::string_view(source_).substr(pos_, open - pos_), sign, type == '{');
    Advance(open - pos_ + (sign ? 3 : 2));
    if (type == '#') return Comment();
    if (type == '%' && RawBegins()) return Raw();
    Add(type == '%' ? TokenKind::kBlockBegin : TokenKind::kPrintBegin, type == '%' ? "{%" : "{{");
    return Inside(type == '%');
  }

  // After the end of a tag of `n` bytes that is no print: '-' eats all space that follows, else one
  // newline goes unless the sign is '+'.
  void CloseTag(char sign, size_t n) {
    Advance(n);
    line_starting_ = false;
    if (sign == '-') {
      const size_t before = pos_;
      SkipSpace();
      line_starting_ = pos_ > before && source_[pos_ - 1] == '\n';
    } else if (sign != '+' && At("\n")) {
      Advance(1);
      line_starting_ = true;
    }
  }

  Status Comment() {
    const size_t end = source_.find("#}", pos_);
    if (end == kNone) {
      // Jinja2 accepts what is opened at the very end.
      return pos_ == source_.size() ? Status::Ok() : Error("a comment '{#' is not closed");
    }
    const char sign = end > pos_ ? source_[end - 1] : '\0';
    const bool signed_end = sign == '-' || sign == '+';
    Advance(end - pos_);
    CloseTag(signed_end ? sign : '\0', 2);
    return Status::Ok();
  }

  // At the first byte after "{%": is this {% raw %}? If so, behind it.
  bool RawBegins() {
    const size_t pos = pos_;
    const int line = line_;
    SkipSpace();
    if (At("raw")) {
      Advance(3);
      SkipSpace();
      if (At("-%}")) {
        Advance(3);
        SkipSpace();
        return true;
      }
      if (At("%}")) {
        Advance(2);
        return true;
      }
    }
    pos_ = pos;
    line_ = line;
    return false;
  }

  Status Raw() {
    const size_t begin = pos_;
    const int begin_line = line_;
    // {% raw %} takes no newline with it; {% raw -%} takes all space.
    line_starting_ = source_[pos_ - 1] == '\n';
    for (size_t open = begin; (open = source_.find("{%", open)) != kNone; ++open) {
      pos_ = open + 2;
      const char sign = At("-") || At("+") ? source_[pos_++] : '\0';
      SkipSpace();
      if (!At("endraw")) continue;
      pos_ += 6;
      SkipSpace();
      const char close = At("-%}") || At("+%}") ? source_[pos_] : '\0';
      if (!close && !At("%}")) continue;
      const size_t end = pos_;
      pos_ = begin;
      line_ = begin_line;
      AddData(std::string_view(source_).substr(begin, open - begin), sign, false);
      Advance(end - begin);
      CloseTag(close, close ? 3 : 2);
      return Status::Ok();
    }
    pos_ = begin;
    line_ = begin_line;
    return begin == source_.size() ? Status::Ok() : Error("'{% raw %}' is not closed");
  }

  // The tokens of one {% %} or {{ }} and its end.
  Status Inside(bool is_block) {
    std::string open_brackets;
    while (true) {
      SkipSpace();
      if (pos_ >= source_.size()) {
        return Error(is_block ? "a block '{%' is not closed" : "a print '{{' is not closed");
      }
      const std::string_view end = is_block ? "%}" : "}}";
      const bool is_signed =
          (At("-") || (is_block && At("+"))) && Rest().substr(1).starts_with(end);
      if (open_brackets.empty() && (is_signed || At(end))) {
        Add(is_block ? TokenKind::kBlockEnd : TokenKind::kPrintEnd, std::string(end));
        const char sign = is_signed ? source_[pos_] : '\0';
        // The newline after a print stays.
        CloseTag(is_block || sign ? sign : '+', is_signed ? 3 : 2);
        return Status::Ok();
      }
      MM01_RETURN_IF_ERROR(OneToken(open_brackets));
    }
  }

  Status OneToken(std::string& open_brackets) {
    const char c = source_[pos_];
    if (IsNameStart(c)) {
      size_t n = 1;
      while (pos_ + n < source_.size() && IsNamePart(source_[pos_ + n])) ++n;
      Add(TokenKind::kName, std::string(Rest().substr(0, n)));
      Advance(n);
      return Status::Ok();
    }
    if (IsDigit(c)) return Number();
    if (c == '\'' || c == '"') return String(c);
    return Operator(open_brackets);
  }

  // The end of digits with single underscores between them, from `at` on; `at` if there is none.
  size_t Digits(size_t at) const {
    const size_t begin = at;
    while (at < source_.size() &&
           (IsDigit(source_[at]) || (at > begin && source_[at] == '_' && at + 1 < source_.size() &&
                                     IsDigit(source_[at + 1])))) {
      ++at;
    }
    return at;
  }

  Status Number() {
    size_t end = Digits(pos_);
    TokenKind kind = TokenKind::kInt;
    // ".5" after a number that follows a dot is an index again: a.1.5
    const bool after_dot = pos_ > 0 && source_[pos_ - 1] == '.';
    if (!after_dot) {
      if (end < source_.size() && source_[end] == '.' && Digits(end + 1) > end + 1) {
        end = Digits(end + 1);
        kind = TokenKind::kFloat;
      }
      if (end < source_.size() && (source_[end] | 0x20) == 'e') {
        size_t exponent = end + 1;
        if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) {
          ++exponent;
        }
        if (Digits(exponent) > exponent) {
          end = Digits(exponent);
          kind = TokenKind::kFloat;
        }
      }
    }
    if (end < source_.size() && IsNamePart(source_[end])) {
      return Error(fmt::format("the number '{}' is not written in decimal digits",
                               source_.substr(pos_, end + 1 - pos_)));
    }
    std::string digits(Rest().substr(0, end - pos_));
    std::erase(digits, '_');
    if (kind == TokenKind::kInt && digits.size() > 1 && digits[0] == '0' &&
        digits.find_first_not_of('0') != kNone) {
      return Error(fmt::format("the number '{}' begins with 0", digits));
    }
    Add(kind, std::move(digits));
    Advance(end - pos_);
    return Status::Ok();
  }

  Status String(char quote) {
    size_t end = pos_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) return Error("a string is not closed");
    std::string text;
    MM01_RETURN_IF_ERROR(
        Unescape(std::string_view(source_).substr(pos_ + 1, end - pos_ - 1), text));
    Add(TokenKind::kString, std::move(text));
    Advance(end + 1 - pos_);
    return Status::Ok();
  }

  Status Unescape(std::string_view s, std::string& out) const {
    static constexpr std::string_view kLetters = "ntrabfv\\'\"";
    static constexpr std::string_view kMeanings = "\n\t\r\a\b\f\v\\'\"";
    for (size_t i = 0; i < s.size(); ++i) {
      if (s[i] != '\\') {
        out += s[i];
        continue;
      }
      const char c = s[++i];  // a string never ends in a lone backslash
      if (const size_t at = kLetters.find(c); at != kNone) {
        out += kMeanings[at];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        MM01_RETURN_IF_ERROR(CodePoint(s.substr(i + 1, digits), digits, 16, out));
        i += digits;
      } else if (c >= '0' && c <= '7') {
        size_t digits = 1;
        while (digits < 3 && i + digits < s.size() && s[i + digits] >= '0' &&
               s[i + digits] <= '7') {
          ++digits;
        }
        MM01_RETURN_IF_ERROR(CodePoint(s.substr(i, digits), digits, 8, out));
        i += digits - 1;
      } else if (c == 'N') {
        return Status::Unsupported(
            fmt::format("{}: line {}: the escape \\N in a string is not supported", where_, line_));
      } else if (c != '\n') {
        out += '\\';
        out += c;
      }
    }
    return Status::Ok();
  }

  Status CodePoint(std::string_view digits, size_t want, int base, std::string& out) const {
    uint32_t c = 0;
    bool good = digits.size() == want;
    for (const char d : digits) {
      const int lower = d | 0x20;
      const int value = IsDigit(d) ? d - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : 99;
      good = good && value < base;
      c = c * base + value;
    }
    if (!good || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) {
      return Error(fmt::format("the escape of '{}' in a string is no character", digits));
    }
    AppendUtf8(c, out);
    return Status::Ok();
  }

  Status Operator(std::string& open_brackets) {
    static constexpr std::array<std::string_view, 27> kOperators = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]",
        "(",  ")",  "{",  "}",  ">",  "<",  "=", ".", ":", "|", ",", ";", ""};
    const auto* op = std::find_if(kOperators.begin(), kOperators.end(),
                                  [&](std::string_view o) { return At(o); });
    if (op->empty()) {
      size_t n;
      DecodeUtf8(source_, pos_, &n);
      return Error(fmt::format("the character '{}' has no meaning here", Rest().substr(0, n)));
    }
    if (*op == "(" || *op == "[" || *op == "{") {
      open_brackets += *op == "(" ? ')' : *op == "[" ? ']' : '}';
    } else if (*op == ")" || *op == "]" || *op == "}") {
      if (open_brackets.empty()) return Error(fmt::format("'{}' closes nothing", *op));
      if (open_brackets.back() != (*op)[0]) {
        return Error(fmt::format("'{}' stands where '{}' was wanted", *op, open_brackets.back()));
      }
      open_brackets.pop_back();
    }
    Add(TokenKind::kOperator, std::string(*op));
    Advance(op->size());
    return Status::Ok();
  }

  std::string source_;
  const std::string& where_;
  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
};

}  // namespace

Result<std::vector<Token>> Tokenize(std::string_view source, const std::string& where) {
  if (source.size() > kMaxSourceBytes) {
    return Status::TooLarge(fmt::format("{}: a chat template of {} bytes, at most {} are read",
                                        where, source.size(), kMaxSourceBytes));
  }
  if (ValidUtf8Prefix(source) != source.size()) {
    return Status::Invalid(where + ": the chat template is not UTF-8");
  }
  return Lexer(NormalizeNewlines(source), where).Run();
}

}  // namespace mm01::jinja
