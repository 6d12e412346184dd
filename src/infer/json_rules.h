// The rules of JSON itself, for the grammars of json_filter.h. Source: RFC 8259.
//
// A rule is a number of the grammar that it was added to. Blanks are at most one after ':' and ','.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "infer/grammar.h"

namespace mm01::infer {

inline constexpr size_t kMaxGrammarSize = 200'000;  // elements

class JsonRules {
 public:
  explicit JsonRules(Grammar& grammar);

  int32_t blank() const { return blank_; }
  int32_t any() const { return any_; }
  int32_t any_object() const { return any_object_; }
  int32_t integer() const { return integer_; }  // of at most 16 digits
  int32_t number() const { return number_; }

  int32_t Text(std::string_view text);
  int32_t Rule(const std::vector<int32_t>& sequence);
  int32_t Either(const std::vector<int32_t>& rules);
  // Up to `count` times `element`.
  int32_t Optional(int32_t element, int64_t count);
  // A string of min to max code points; max -1 is no limit.
  int32_t String(int64_t min, int64_t max);
  // `open`, any number of items with commas between them, `close`.
  int32_t List(const char* open, int32_t item, const char* close);
  // KEY: VALUE
  int32_t Member(int32_t key, int32_t value);
  // An integer, within 16 digits.
  int32_t Between(int64_t min, int64_t max);

 private:
  void MakeChar();
  void MakeNumbers();
  void MakeAny();
  void AddDigits(int32_t rule, std::string_view low, std::string_view high,
                 std::vector<int32_t> begin);
  void AddPositive(int32_t rule, int64_t min, int64_t max, const std::vector<int32_t>& begin);

  Grammar& g_;
  int32_t blank_ = 0, digits_ = 0, char_ = 0, chars_ = 0;
  int32_t integer_ = 0, number_ = 0, any_ = 0, any_object_ = 0;
};

}  // namespace mm01::infer
