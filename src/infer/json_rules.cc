#include "infer/json_rules.h"

#include <algorithm>
#include <string>

namespace mm01::infer {
namespace {

constexpr int kDigits = 16;

using Symbols = std::vector<int32_t>;

ByteClass Range(unsigned char first, unsigned char last) {
  ByteClass bytes;
  for (int b = first; b <= last; ++b) bytes.set(static_cast<size_t>(b));
  return bytes;
}

ByteClass AnyOf(std::string_view text) {
  ByteClass bytes;
  for (const char c : text) bytes.set(static_cast<unsigned char>(c));
  return bytes;
}

}  // namespace

JsonRules::JsonRules(Grammar& grammar) : g_(grammar) {
  blank_ = g_.NewRule();
  g_.Add(blank_, {g_.Class(AnyOf(" "))});
  g_.Add(blank_, {});
  digits_ = Optional(g_.Class(Range('0', '9')), kDigits - 1);
  MakeChar();
  chars_ = g_.NewRule();
  g_.Add(chars_, {Grammar::Call(char_), Grammar::Call(chars_)});
  g_.Add(chars_, {});
  MakeNumbers();
  MakeAny();
}

int32_t JsonRules::Text(std::string_view text) {
  Symbols s;
  g_.AppendText(text, &s);
  return Rule(s);
}

int32_t JsonRules::Rule(const Symbols& s) {
  const int32_t rule = g_.NewRule();
  g_.Add(rule, s);
  return rule;
}

int32_t JsonRules::Either(const std::vector<int32_t>& rules) {
  const int32_t rule = g_.NewRule();
  for (const int32_t r : rules) g_.Add(rule, {Grammar::Call(r)});
  return rule;
}

int32_t JsonRules::Optional(int32_t element, int64_t count) {
  int32_t rule = Rule({});
  for (int64_t i = 0; i < count && g_.size() < kMaxGrammarSize; ++i) {
    const int32_t longer = g_.NewRule();
    g_.Add(longer, {element, Grammar::Call(rule)});
    g_.Add(longer, {});
    rule = longer;
  }
  return rule;
}

int32_t JsonRules::String(int64_t min, int64_t max) {
  Symbols s;
  g_.AppendText("\"", &s);
  for (int64_t i = 0; i < min && g_.size() + s.size() < kMaxGrammarSize; ++i) {
    s.push_back(Grammar::Call(char_));
  }
  s.push_back(Grammar::Call(max < 0 ? chars_ : Optional(Grammar::Call(char_), max - min)));
  g_.AppendText("\"", &s);
  return Rule(s);
}

int32_t JsonRules::List(const char* open, int32_t item, const char* close) {
  const int32_t more = g_.NewRule();
  Symbols s;
  g_.AppendText(",", &s);
  s.insert(s.end(), {Grammar::Call(blank_), Grammar::Call(item), Grammar::Call(more)});
  g_.Add(more, s);
  g_.Add(more, {});
  const int32_t list = g_.NewRule();
  Symbols full, empty;
  g_.AppendText(open, &full);
  full.insert(full.end(), {Grammar::Call(item), Grammar::Call(more)});
  g_.AppendText(close, &full);
  g_.AppendText(std::string(open) + close, &empty);
  g_.Add(list, full);
  g_.Add(list, empty);
  return list;
}

int32_t JsonRules::Member(int32_t key, int32_t value) {
  Symbols s = {Grammar::Call(key)};
  g_.AppendText(":", &s);
  s.insert(s.end(), {Grammar::Call(blank_), Grammar::Call(value)});
  return Rule(s);
}

void JsonRules::MakeChar() {
  const auto tail = g_.Class(Range(0x80, 0xBF));
  const auto hex = g_.Class(AnyOf("0123456789abcdefABCDEF"));
  char_ = g_.NewRule();
  ByteClass plain = Range(0x20, 0x7F);
  plain.reset('"').reset('\\');
  g_.Add(char_, {g_.Class(plain)});
  // Well-formed UTF-8: table 3-7 of the Unicode standard.
  g_.Add(char_, {g_.Class(Range(0xC2, 0xDF)), tail});
  g_.Add(char_, {g_.Class(Range(0xE0, 0xE0)), g_.Class(Range(0xA0, 0xBF)), tail});
  g_.Add(char_, {g_.Class(Range(0xE1, 0xEC) | Range(0xEE, 0xEF)), tail, tail});
  g_.Add(char_, {g_.Class(Range(0xED, 0xED)), g_.Class(Range(0x80, 0x9F)), tail});
  g_.Add(char_, {g_.Class(Range(0xF0, 0xF0)), g_.Class(Range(0x90, 0xBF)), tail, tail});
  g_.Add(char_, {g_.Class(Range(0xF1, 0xF3)), tail, tail, tail});
  g_.Add(char_, {g_.Class(Range(0xF4, 0xF4)), g_.Class(Range(0x80, 0x8F)), tail, tail});
  const auto escape = g_.Class(AnyOf("\\"));
  g_.Add(char_, {escape, g_.Class(AnyOf("\"\\/bfnrt"))});
  const auto u = g_.Class(AnyOf("u"));
  g_.Add(char_, {escape, u, g_.Class(AnyOf("0123456789abcefABCEF")), hex, hex, hex});
  g_.Add(char_, {escape, u, g_.Class(AnyOf("dD")), g_.Class(Range('0', '7')), hex, hex});
}

void JsonRules::MakeNumbers() {
  const auto digit = g_.Class(Range('0', '9'));
  const int32_t sign = g_.NewRule();
  g_.Add(sign, {g_.Class(AnyOf("-"))});
  g_.Add(sign, {});
  integer_ = g_.NewRule();
  g_.Add(integer_, {Grammar::Call(sign), g_.Class(AnyOf("0"))});
  g_.Add(integer_, {Grammar::Call(sign), g_.Class(Range('1', '9')), Grammar::Call(digits_)});
  const int32_t fraction = g_.NewRule();
  g_.Add(fraction, {g_.Class(AnyOf(".")), digit, Grammar::Call(digits_)});
  g_.Add(fraction, {});
  const int32_t exponent_sign = g_.NewRule();
  g_.Add(exponent_sign, {g_.Class(AnyOf("+-"))});
  g_.Add(exponent_sign, {});
  const int32_t exponent = g_.NewRule();
  g_.Add(exponent, {g_.Class(AnyOf("eE")), Grammar::Call(exponent_sign), digit,
                    Grammar::Call(Optional(digit, 1))});
  g_.Add(exponent, {});
  number_ = Rule({Grammar::Call(integer_), Grammar::Call(fraction), Grammar::Call(exponent)});
}

void JsonRules::MakeAny() {
  any_ = g_.NewRule();
  const int32_t text = String(0, -1);
  any_object_ = List("{", Member(text, any_), "}");
  const int32_t any_array = List("[", any_, "]");
  for (const int32_t r :
       {text, number_, any_object_, any_array, Text("true"), Text("false"), Text("null")}) {
    g_.Add(any_, {Grammar::Call(r)});
  }
}

// Numbers from `low` to `high`, which have as many digits.
void JsonRules::AddDigits(int32_t rule, std::string_view low, std::string_view high,
                          Symbols begin) {
  while (!low.empty() && low[0] == high[0]) {
    g_.AppendText(low.substr(0, 1), &begin);
    low.remove_prefix(1);
    high.remove_prefix(1);
  }
  const bool is_all =
      low.find_first_not_of('0') == low.npos && high.find_first_not_of('9') == high.npos;
  if (is_all) {
    begin.insert(begin.end(), low.size(), g_.Class(Range('0', '9')));
    return g_.Add(rule, begin);
  }
  const size_t rest = low.size() - 1;
  Symbols at_low = begin, at_high = begin;
  g_.AppendText(low.substr(0, 1), &at_low);
  g_.AppendText(high.substr(0, 1), &at_high);
  AddDigits(rule, low.substr(1), std::string(rest, '9'), at_low);
  AddDigits(rule, std::string(rest, '0'), high.substr(1), at_high);
  if (high[0] - low[0] < 2) return;
  begin.push_back(g_.Class(
      Range(static_cast<unsigned char>(low[0] + 1), static_cast<unsigned char>(high[0] - 1))));
  begin.insert(begin.end(), rest, g_.Class(Range('0', '9')));
  g_.Add(rule, begin);
}

void JsonRules::AddPositive(int32_t rule, int64_t min, int64_t max, const Symbols& begin) {
  for (int64_t low = min; low <= max;) {
    const std::string digits = std::to_string(low);
    const int64_t high = std::min<int64_t>(max, std::stoll(std::string(digits.size(), '9')));
    AddDigits(rule, digits, std::to_string(high), begin);
    low = high + 1;
  }
}

int32_t JsonRules::Between(int64_t min, int64_t max) {
  const int32_t rule = g_.NewRule();
  Symbols minus;
  g_.AppendText("-", &minus);
  if (min < 0) AddPositive(rule, std::max<int64_t>(1, -max), -min, minus);
  if (max >= 0) AddPositive(rule, std::max<int64_t>(0, min), max, {});
  return rule;
}

}  // namespace mm01::infer
