#include "base/json.h"

#include <fmt/core.h>

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <unordered_set>
#include <utility>
#include <vector>

namespace mm01 {
namespace {

bool IsDigit(char c) {
  return '0' <= c && c <= '9';
}

// Bytes of the well-formed UTF-8 code point above U+007F that `text` begins with, 0 where there is
// none: table 3-7 of the Unicode standard.
size_t CodePointBytes(std::string_view text) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto in = [&](size_t i, unsigned low, unsigned high) {
    return low <= byte(i) && byte(i) <= high;
  };
  const unsigned first = byte(0);
  if (in(0, 0xC2, 0xDF)) return in(1, 0x80, 0xBF) ? 2 : 0;
  if (in(0, 0xE0, 0xEF)) {
    const bool second = in(1, first == 0xE0 ? 0xA0 : 0x80, first == 0xED ? 0x9F : 0xBF);
    return second && in(2, 0x80, 0xBF) ? 3 : 0;
  }
  if (in(0, 0xF0, 0xF4)) {
    const bool second = in(1, first == 0xF0 ? 0x90 : 0x80, first == 0xF4 ? 0x8F : 0xBF);
    return second && in(2, 0x80, 0xBF) && in(3, 0x80, 0xBF) ? 4 : 0;
  }
  return 0;
}

void AppendUtf8(uint32_t point, std::string* out) {
  const auto rest = [&](int shift) { *out += static_cast<char>(0x80 | (point >> shift & 0x3F)); };
  if (point < 0x80) {
    *out += static_cast<char>(point);
  } else if (point < 0x800) {
    *out += static_cast<char>(0xC0 | point >> 6);
    rest(0);
  } else if (point < 0x10000) {
    *out += static_cast<char>(0xE0 | point >> 12);
    rest(6);
    rest(0);
  } else {
    *out += static_cast<char>(0xF0 | point >> 18);
    rest(12);
    rest(6);
    rest(0);
  }
}

// Recursive descent over RFC 8259. nlohmann's own parser holds three copies of a text while it
// reads it, and looks through an ordered object for every key that is added.
class JsonReader {
 public:
  JsonReader(std::string_view text, int max_depth) : text_(text), max_depth_(max_depth) {}

  bool Read(Json* out) {
    if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;  // a byte order mark
    SkipBlanks();
    if (!Value(out)) return false;
    SkipBlanks();
    return at_ == text_.size() || Wrong("the end");
  }

  std::string error;

 private:
  using Members = std::vector<std::pair<const std::string, Json>>;

  char Peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool Take(char c) {
    const bool is_next = at_ < text_.size() && text_[at_] == c;
    at_ += is_next ? 1 : 0;
    return is_next;
  }
  bool Wrong(const char* wanted) {
    const auto c = static_cast<unsigned char>(Peek());
    const std::string found = at_ == text_.size()    ? "the end"
                              : c > 0x20 && c < 0x7F ? fmt::format("'{}'", text_[at_])
                                                     : fmt::format("the byte 0x{:02x}", c);
    error = fmt::format("not JSON at byte {}: found {}, wanted {}", at_ + 1, found, wanted);
    return false;
  }
  void SkipBlanks() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
      ++at_;
    }
  }

  bool Value(Json* out) {
    switch (Peek()) {
      case '{':
        return Object(out);
      case '[':
        return List(out);
      case '"': {
        std::string text;
        if (!Text(&text)) return false;
        *out = std::move(text);
        return true;
      }
      case 't':
        return Word("true", true, out);
      case 'f':
        return Word("false", false, out);
      case 'n':
        return Word("null", nullptr, out);
      default:
        return Number(out);
    }
  }

  bool Word(std::string_view word, Json value, Json* out) {
    for (const char c : word) {
      if (!Take(c)) return Wrong("a value");
    }
    *out = std::move(value);
    return true;
  }

  bool Open(char bracket) {
    if (depth_ >= max_depth_) {
      error = fmt::format("nested deeper than {} levels", max_depth_);
      return false;
    }
    ++depth_;
    Check(Take(bracket), "no bracket here");
    SkipBlanks();
    return true;
  }

  bool List(Json* out) {
    if (!Open('[')) return false;
    *out = Json::array();
    auto& entries = out->get_ref<Json::array_t&>();
    for (bool is_first = true; !Take(']'); is_first = false) {
      if (!is_first) {
        if (!Take(',')) return Wrong("',' or ']'");
        SkipBlanks();
      }
      if (!Value(&entries.emplace_back())) return false;
      SkipBlanks();
    }
    --depth_;
    return true;
  }

  bool Object(Json* out) {
    if (!Open('{')) return false;
    *out = Json::object();
    Members& members = out->get_ref<Json::object_t&>();
    std::unordered_set<std::string> keys;
    for (bool is_first = true; !Take('}'); is_first = false) {
      if (!is_first) {
        if (!Take(',')) return Wrong("',' or '}'");
        SkipBlanks();
      }
      std::string key;
      if (Peek() != '"') return Wrong("a key in quotes");
      if (!Text(&key)) return false;
      if (!keys.insert(key).second) {
        error = fmt::format("the key \"{}\" stands twice in one object", key.substr(0, 100));
        return false;
      }
      SkipBlanks();
      if (!Take(':')) return Wrong("':'");
      SkipBlanks();
      if (!Value(&members.emplace_back(std::move(key), nullptr).second)) return false;
      SkipBlanks();
    }
    --depth_;
    return true;
  }

  bool Text(std::string* out) {
    Check(Take('"'), "no text here");
    for (size_t begin = at_;;) {
      const auto c = static_cast<unsigned char>(Peek());
      if (c >= 0x80) {
        const size_t n = CodePointBytes(text_.substr(at_));
        if (n == 0) return Wrong("UTF-8");
        at_ += n;
        continue;
      }
      if (c >= 0x20 && c != '"' && c != '\\') {
        ++at_;
        continue;
      }
      out->append(text_, begin, at_ - begin);
      if (Take('"')) return true;
      if (c != '\\') return Wrong(at_ == text_.size() ? "'\"'" : "an escape");
      if (!Escape(out)) return false;
      begin = at_;
    }
  }

  bool Escape(std::string* out) {
    constexpr std::string_view kNames = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    ++at_;
    if (Take('u')) return EscapedCodePoint(out);
    const size_t which = at_ < text_.size() ? kNames.find(text_[at_]) : kNames.npos;
    if (which == kNames.npos) return Wrong("one of \"\\/bfnrtu");
    ++at_;
    *out += kMeant[which];
    return true;
  }

  bool EscapedCodePoint(std::string* out) {
    uint32_t point = 0, low = 0;
    if (!Hex(&point)) return false;
    if (0xD800 <= point && point <= 0xDBFF) {
      if (!Take('\\') || !Take('u')) return Wrong("\\u and the other half of a pair");
      if (!Hex(&low)) return false;
      if (low < 0xDC00 || low > 0xDFFF) return Wrong("a low surrogate before it");
      point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    } else if (0xDC00 <= point && point <= 0xDFFF) {
      return Wrong("a high surrogate before it");
    }
    AppendUtf8(point, out);
    return true;
  }

  bool Hex(uint32_t* out) {
    for (const size_t end = at_ + 4; at_ < end; ++at_) {
      const char c = Peek();
      const char lower = static_cast<char>(c | 0x20);
      const bool is_letter = 'a' <= lower && lower <= 'f';
      if (!IsDigit(c) && !is_letter) return Wrong("a hexadecimal digit");
      *out = *out << 4 | static_cast<uint32_t>(is_letter ? lower - 'a' + 10 : c - '0');
    }
    return true;
  }

  bool Digits(const char* wanted) {
    if (!IsDigit(Peek())) return Wrong(wanted);
    while (IsDigit(Peek())) ++at_;
    return true;
  }

  bool Number(Json* out) {
    const size_t begin = at_;
    const bool is_negative = Take('-');
    if (!Take('0') && !Digits(is_negative ? "a digit" : "a value")) return false;
    bool is_whole = true;
    if (Take('.')) {
      is_whole = false;
      if (!Digits("a digit")) return false;
    }
    if (Take('e') || Take('E')) {
      is_whole = false;
      if (!Take('+')) Take('-');
      if (!Digits("a digit")) return false;
    }
    const char *first = text_.data() + begin, *last = text_.data() + at_;
    if (is_whole &&
        (is_negative ? Whole<int64_t>(first, last, out) : Whole<uint64_t>(first, last, out))) {
      return true;
    }
    // Of numbers out of range from_chars does not say whether they are tiny.
    double number = 0;
    if (std::from_chars(first, last, number).ec != std::errc()) {
      number = std::strtod(std::string(first, last).c_str(), nullptr);
    }
    if (!std::isfinite(number)) {
      error = fmt::format("not JSON at byte {}: the number is too large", begin + 1);
      return false;
    }
    *out = number;
    return true;
  }

  // False where it does not fit.
  template <typename T>
  static bool Whole(const char* first, const char* last, Json* out) {
    T number = 0;
    if (std::from_chars(first, last, number).ec != std::errc()) return false;
    *out = number;
    return true;
  }

  const std::string_view text_;
  const int max_depth_;
  int depth_ = 0;
  size_t at_ = 0;
};

}  // namespace

Result<Json> ParseJson(std::string_view text, const std::string& where, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return Status::TooLarge(fmt::format("{}: {} bytes of JSON, at most {} are read", where,
                                        text.size(), limits.max_bytes));
  }
  JsonReader reader(text, limits.max_depth);
  Json root;
  if (!reader.Read(&root)) return Status::Invalid(where + ": " + reader.error);
  return root;
}

bool ReadJsonEvents(std::string_view text, JsonEvents* events) {
  return Json::sax_parse(text.begin(), text.end(), events);
}

bool IsJson(std::string_view text) {
  return Json::accept(text.begin(), text.end());
}

std::string JsonText(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace mm01
