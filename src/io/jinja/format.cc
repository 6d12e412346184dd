#include "io/jinja/format.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "io/jinja/operators.h"
#include "io/jinja/unicode.h"

namespace mm01::jinja {
namespace {

constexpr int kMaxPrintDepth = 2 * kMaxNesting;

// Where both printers write to: bytes, whether any came from the request, and the limits.
struct Sink {
  explicit Sink(Runtime& r) : rt(r) {}

  void Put(std::string_view s) {
    if (Full()) return;
    bytes += s;
    rt.budget.Bytes(s.size() + 8);
  }
  void Overflow() { overflow = true; }
  bool Full() const { return overflow || bytes.size() > kMaxTextBytes || rt.budget.spent(); }
  Result<Value> Done() {
    if (overflow || bytes.size() > kMaxTextBytes) {
      return Status::TooLarge(fmt::format("a text grows over {} bytes", kMaxTextBytes));
    }
    return rt.Copied(std::move(bytes), trusted);
  }
  Status CheckDepth(int depth) const {
    if (depth <= kMaxPrintDepth) return Status::Ok();
    return Status::TooLarge(
        fmt::format("a value nested deeper than {} levels is printed", kMaxPrintDepth));
  }

  Runtime& rt;
  std::string bytes;
  bool trusted = true;
  bool overflow = false;
};

void PutNumber(const Value& v, Sink& out) {
  out.trusted = out.trusted && v.trusted;
  out.Put(v.kind == Kind::kFloat ? FormatFloat(v.real) : std::to_string(v.AsInt()));
}

void ReprString(const Text& text, Sink& out) {
  if (text.size() > kMaxTextBytes || !out.rt.budget.Bytes(4 * text.size())) return out.Overflow();
  const bool has_single = text.view.find('\'') != std::string_view::npos;
  const char quote = has_single && text.view.find('"') == std::string_view::npos ? '"' : '\'';
  std::string s(1, quote);
  for (size_t pos = 0, n = 0; pos < text.size(); pos += n) {
    const uint32_t c = DecodeUtf8(text.view, pos, &n);
    if (c == '\\' || c == static_cast<uint32_t>(quote)) {
      s += '\\';
      s += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      s += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (IsPrintable(c)) {
      s += text.view.substr(pos, n);
    } else {
      s += c <= 0xff     ? fmt::format("\\x{:02x}", c)
           : c <= 0xffff ? fmt::format("\\u{:04x}", c)
                         : fmt::format("\\U{:08x}", c);
    }
  }
  s += quote;
  out.trusted = out.trusted && text.AllTrusted();
  out.Put(text.markup ? fmt::format("Markup({})", s) : s);
}

Status Repr(const Value& v, int depth, Sink& out);

Status ReprItems(const std::vector<Value>& items, int depth, Sink& out) {
  for (size_t i = 0; i < items.size() && !out.Full(); ++i) {
    if (i > 0) out.Put(", ");
    MM01_RETURN_IF_ERROR(Repr(items[i], depth, out));
  }
  return Status::Ok();
}

Status ReprSeq(const Seq& seq, int depth, Sink& out) {
  switch (seq.kind) {
    case SeqKind::kRange: {
      const auto [start, stop, step] = seq.range;
      out.Put(step == 1 ? fmt::format("range({}, {})", start, stop)
                        : fmt::format("range({}, {}, {})", start, stop, step));
      return Status::Ok();
    }
    case SeqKind::kGenerator:
      return Status::Unsupported("to print a generator is not supported");
    case SeqKind::kTuple:
      out.Put("(");
      MM01_RETURN_IF_ERROR(ReprItems(seq.items, depth, out));
      out.Put(seq.items.size() == 1 ? ",)" : ")");
      return Status::Ok();
    case SeqKind::kList:
      break;
    case SeqKind::kKeys:
      out.Put("dict_keys(");
      break;
    case SeqKind::kValues:
      out.Put("dict_values(");
      break;
    case SeqKind::kItems:
      out.Put("dict_items(");
      break;
  }
  out.Put("[");
  MM01_RETURN_IF_ERROR(ReprItems(seq.items, depth, out));
  out.Put(seq.kind == SeqKind::kList ? "]" : "])");
  return Status::Ok();
}

Status ReprDict(const Dict& dict, int depth, Sink& out) {
  out.Put("{");
  for (size_t i = 0; i < dict.items.size() && !out.Full(); ++i) {
    if (i > 0) out.Put(", ");
    MM01_RETURN_IF_ERROR(Repr(dict.items[i].first, depth, out));
    out.Put(": ");
    MM01_RETURN_IF_ERROR(Repr(dict.items[i].second, depth, out));
  }
  out.Put("}");
  return Status::Ok();
}

Status Repr(const Value& v, int depth, Sink& out) {
  MM01_RETURN_IF_ERROR(out.CheckDepth(depth));
  switch (v.kind) {
    case Kind::kUndefined:
      out.Put("Undefined");
      return Status::Ok();
    case Kind::kNone:
      out.Put("None");
      return Status::Ok();
    case Kind::kBool:
      out.trusted = out.trusted && v.trusted;
      out.Put(v.boolean ? "True" : "False");
      return Status::Ok();
    case Kind::kInt:
    case Kind::kFloat:
      PutNumber(v, out);
      return Status::Ok();
    case Kind::kString:
      ReprString(*v.text, out);
      return Status::Ok();
    case Kind::kSeq:
      return ReprSeq(*v.seq, depth + 1, out);
    case Kind::kDict:
      return ReprDict(*v.dict, depth + 1, out);
    case Kind::kNamespace:
      out.Put("<Namespace ");
      MM01_RETURN_IF_ERROR(ReprDict(*v.dict, depth + 1, out));
      out.Put(">");
      return Status::Ok();
    default:
      return Status::Unsupported(fmt::format("to print {} is not supported", KindName(v)));
  }
}

class JsonPrinter {
 public:
  JsonPrinter(Runtime& rt, const JsonStyle& style) : out_(rt), style_(style) {}

  Result<Value> Run(const Value& v) {
    MM01_RETURN_IF_ERROR(Print(v, 0));
    return out_.Done();
  }

 private:
  Status Print(const Value& v, int depth) {
    MM01_RETURN_IF_ERROR(out_.CheckDepth(depth));
    switch (v.kind) {
      case Kind::kNone:
        out_.Put("null");
        return Status::Ok();
      case Kind::kBool:
        out_.trusted = out_.trusted && v.trusted;
        out_.Put(v.boolean ? "true" : "false");
        return Status::Ok();
      case Kind::kInt:
        PutNumber(v, out_);
        return Status::Ok();
      case Kind::kFloat:
        PutFloat(v);
        return Status::Ok();
      case Kind::kString:
        PutString(*v.text);
        return Status::Ok();
      case Kind::kDict:
        return PrintDict(*v.dict, depth);
      case Kind::kSeq:
        if (v.seq->kind <= SeqKind::kTuple) return PrintList(v.seq->items, depth);
        [[fallthrough]];
      default:
        return Status::Invalid(fmt::format("{} cannot be written as JSON", KindName(v)));
    }
  }

  void PutFloat(const Value& v) {
    if (std::isfinite(v.real)) return PutNumber(v, out_);
    out_.Put(std::isnan(v.real) ? "NaN" : v.real > 0 ? "Infinity" : "-Infinity");
  }

  void PutString(const Text& text) {
    out_.trusted = out_.trusted && text.AllTrusted();
    if (text.size() > kMaxTextBytes || !out_.rt.budget.Bytes(4 * text.size()))
      return out_.Overflow();
    std::string s = "\"";
    for (size_t pos = 0, n = 0; pos < text.size(); pos += n) {
      const uint32_t c = DecodeUtf8(text.view, pos, &n);
      static constexpr std::string_view kEscaped = "\"\\\n\r\t\f\b";
      const size_t at = c < 0x80 ? kEscaped.find(static_cast<char>(c)) : std::string_view::npos;
      if (at != std::string_view::npos) {
        s += '\\';
        s += "\"\\nrtfb"[at];
      } else if (c < 0x20 || (style_.ensure_ascii && c > 0x7f && c < 0x10000)) {
        s += fmt::format("\\u{:04x}", c);
      } else if (style_.ensure_ascii && c >= 0x10000) {
        s += fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + ((c - 0x10000) >> 10),
                         0xdc00 + ((c - 0x10000) & 0x3ff));
      } else {
        s += text.view.substr(pos, n);
      }
    }
    s += '"';
    out_.Put(s);
  }

  void NewLine(int depth) {
    if (!style_.indent) return;
    out_.Put("\n");
    for (int i = 0; i < depth; ++i) out_.Put(*style_.indent);
  }

  Status PrintList(const std::vector<Value>& items, int depth) {
    out_.Put("[");
    for (size_t i = 0; i < items.size() && !out_.Full(); ++i) {
      if (i > 0) out_.Put(style_.item_separator);
      NewLine(depth + 1);
      MM01_RETURN_IF_ERROR(Print(items[i], depth + 1));
    }
    if (!items.empty()) NewLine(depth);
    out_.Put("]");
    return Status::Ok();
  }

  Status PrintDict(const Dict& dict, int depth) {
    auto items = dict.items;
    out_.rt.budget.Items(items.size());
    if (style_.sort_keys) MM01_RETURN_IF_ERROR(SortKeys(items));
    out_.Put("{");
    for (size_t i = 0; i < items.size() && !out_.Full(); ++i) {
      if (i > 0) out_.Put(style_.item_separator);
      NewLine(depth + 1);
      MM01_RETURN_IF_ERROR(PrintKey(items[i].first));
      out_.Put(style_.key_separator);
      MM01_RETURN_IF_ERROR(Print(items[i].second, depth + 1));
    }
    if (!items.empty()) NewLine(depth);
    out_.Put("}");
    return Status::Ok();
  }

  Status SortKeys(std::vector<std::pair<Value, Value>>& items) {
    for (const auto& [key, value] : items) {
      if (!key.IsString()) return Status::Unsupported("sort_keys with keys that are no strings");
    }
    std::sort(items.begin(), items.end(), [&](const auto& a, const auto& b) {
      out_.rt.budget.Items(1);
      return a.first.text->view < b.first.text->view;
    });
    return Status::Ok();
  }

  Status PrintKey(const Value& key) {
    if (key.IsString()) {
      PutString(*key.text);
      return Status::Ok();
    }
    if (!key.IsNumber() && !key.IsNone()) {
      return Status::Invalid(fmt::format("{} cannot be a key in JSON", KindName(key)));
    }
    out_.Put("\"");
    MM01_RETURN_IF_ERROR(Print(key, 0));
    out_.Put("\"");
    return Status::Ok();
  }

  Sink out_;
  const JsonStyle& style_;
};

}  // namespace

std::string FormatFloat(double f) {
  if (std::isnan(f)) return "nan";
  if (std::isinf(f)) return f > 0 ? "inf" : "-inf";
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), f, std::chars_format::scientific);
  std::string s(buffer, end.ptr);
  const size_t e = s.find('e');
  const int exponent = std::stoi(s.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return s;  // both write at least two digits of exponent
  std::string digits = s.substr(0, e);
  const bool negative = digits[0] == '-';
  std::erase(digits, '-');
  std::erase(digits, '.');
  const int size = static_cast<int>(digits.size());
  if (exponent < 0) {
    digits = "0." + std::string(-exponent - 1, '0') + digits;
  } else if (size <= exponent + 1) {
    digits += std::string(exponent + 1 - size, '0') + ".0";
  } else {
    digits.insert(exponent + 1, ".");
  }
  return negative ? "-" + digits : digits;
}

Result<Value> ToString(Runtime& rt, const Value& v) {
  if (v.IsString()) return v;
  if (v.IsUndefined()) return rt.Borrowed("", true);
  Sink out(rt);
  MM01_RETURN_IF_ERROR(Repr(v, 0, out));
  return out.Done();
}

Result<Value> ToJsonText(Runtime& rt, const Value& v, const JsonStyle& style) {
  return JsonPrinter(rt, style).Run(v);
}

void AppendEscaped(const Text& text, TextBuilder& out) {
  static constexpr std::string_view kSpecial = "&<>'\"";
  static constexpr std::string_view kEntities[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
  size_t begin = 0;
  for (size_t at; (at = text.view.find_first_of(kSpecial, begin)) != std::string_view::npos;
       begin = at + 1) {
    out.Append(text, begin, at);
    const auto run = std::upper_bound(text.runs.begin(), text.runs.end(), at,
                                      [](size_t p, const Run& r) { return p < r.end; });
    out.Append(kEntities[kSpecial.find(text.view[at])], run->trusted);
  }
  out.Append(text, begin, text.size());
}

Value MarkSafe(Runtime& rt, const Value& string) {
  Text& copy = rt.texts.emplace_back();
  copy.view = string.text->view;
  copy.runs = string.text->runs;
  copy.markup = true;
  return Value::String(&copy);
}

}  // namespace mm01::jinja
