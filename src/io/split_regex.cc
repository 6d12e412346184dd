#include "io/split_regex.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdint>

#include "io/regex_dialect.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace mm01 {
namespace {

constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr uint32_t kMaxGroupDepth = 64;

std::string Pcre2Message(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

struct FreeCompileContext {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

bool InsideCodePoint(char c) {
  return (static_cast<uint8_t>(c) & 0xC0) == 0x80;
}

}  // namespace

void SplitRegex::FreeCode::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}
void RegexScanner::Free::operator()(pcre2_real_match_context_8* context) const {
  pcre2_match_context_free(context);
}
void RegexScanner::Free::operator()(pcre2_real_match_data_8* data) const {
  pcre2_match_data_free(data);
}

Result<SplitRegex> SplitRegex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return Status::TooLarge(fmt::format("a pattern of {} bytes, at most {} are compiled",
                                        pattern.size(), kMaxPatternBytes));
  }
  MM01_ASSIGN_OR_RETURN(const std::string spelled, OnigurumaToPcre2(pattern));
  return CompilePcre2(spelled, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE);
}

Result<SplitRegex> SplitRegex::Literal(std::string_view text) {
  if (text.size() > kMaxPatternBytes) {
    return Status::TooLarge(fmt::format("a pattern of {} bytes, at most {} are compiled",
                                        text.size(), kMaxPatternBytes));
  }
  return CompilePcre2(text, PCRE2_UTF | PCRE2_LITERAL);
}

Result<SplitRegex> SplitRegex::CompilePcre2(std::string_view pattern, unsigned options) {
  const std::unique_ptr<pcre2_compile_context, FreeCompileContext> context(
      pcre2_compile_context_create(nullptr));
  Check(context != nullptr, "out of memory for a regular expression");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), kMaxGroupDepth);

  int error = 0;
  PCRE2_SIZE at = 0;
  SplitRegex regex;
  regex.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  options, &error, &at, context.get()));
  if (regex.code_ == nullptr) {
    return Status::Invalid(
        fmt::format("a pattern that is no regular expression: {}", Pcre2Message(error)));
  }
  uint32_t matches_empty = 0;
  pcre2_pattern_info(regex.code_.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) {
    return Status::Unsupported("a pattern that matches the empty string");
  }
  // Where no code can be generated, pcre2_match interprets.
  pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
  return regex;
}

RegexScanner::RegexScanner(size_t text_bytes)
    : context_(pcre2_match_context_create(nullptr)),
      data_(pcre2_match_data_create(1, nullptr)),
      budget_((size_t{1} << 20) + 64 * text_bytes) {
  Check(context_ != nullptr && data_ != nullptr, "out of memory for a regular expression");
  pcre2_set_heap_limit(context_.get(), kHeapLimitKib);
}

int RegexScanner::Match(const SplitRegex& regex, std::string_view window, size_t from,
                        bool partial) {
  const size_t length = window.size() - from;
  if (limit_for_ < length || limit_for_ > 8 * length) {
    limit_for_ = std::max(length, kFirstWindow);
    const size_t limit = std::min<size_t>(1024 + 64 * limit_for_, UINT32_MAX);
    pcre2_set_match_limit(context_.get(), static_cast<uint32_t>(limit));
  }
  const auto match = [&](uint32_t options) {
    if (partial) options |= PCRE2_PARTIAL_HARD;
    return pcre2_match(regex.code_.get(), reinterpret_cast<PCRE2_SPTR>(window.data()),
                       window.size(), from, options | PCRE2_NO_UTF_CHECK, data_.get(),
                       context_.get());
  };
  const int result = match(0);
  // Generated code keeps its backtracking points on a small stack, the interpreter on the heap.
  return result == PCRE2_ERROR_JIT_STACKLIMIT ? match(PCRE2_NO_JIT) : result;
}

RegexScanner::Found RegexScanner::Find(const SplitRegex& regex, std::string_view text,
                                       size_t from) {
  size_t window = kFirstWindow;
  while (from < text.size()) {
    size_t end = text.size() - from > window ? from + window : text.size();
    while (end < text.size() && InsideCodePoint(text[end])) --end;
    const bool partial = end < text.size();
    const int result = Match(regex, text.substr(0, end), from, partial);
    if (result >= 0) {
      const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data_.get());
      begin_ = offsets[0];
      end_ = offsets[1];
      // \K is not in the dialect, but an empty or moved match would loop for ever.
      Check(begin_ >= from && end_ > begin_ && end_ <= end, "a split pattern matched out of order");
      return Found::kMatch;
    }
    if (result == PCRE2_ERROR_NOMATCH) {  // and nothing beyond `end` was asked for
      from = end;
      window = kFirstWindow;
    } else if (result == PCRE2_ERROR_PARTIAL) {
      window *= 4;
      const size_t cost = std::min(window, text.size() - from);
      if (cost > budget_) return Refuse(PCRE2_ERROR_MATCHLIMIT, from);
      budget_ -= cost;
    } else {
      return Refuse(result, from);
    }
  }
  return Found::kNone;
}

RegexScanner::Found RegexScanner::Refuse(int error, size_t from) {
  status_ = Status::TooLarge(fmt::format(
      "the split pattern of the tokenizer needs too much work at byte {} of the text: {}", from,
      Pcre2Message(error)));
  return Found::kError;
}

}  // namespace mm01
