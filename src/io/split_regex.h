// The regular expressions that split text before BPE, on PCRE2, in time linear in the text.
//
// PCRE2 bounds the steps of one match but not how far a match may look, so a pattern can still be
// quadratic in a long text. Here a match first sees a window of kFirstWindow bytes; where it
// touches the window's end (a hard partial match) it is tried again with one four times as long.
// Windows after the first are charged to a budget proportional to the text, and the steps in a
// window are limited in proportion to its length. The usual patterns, which look at each character
// a bounded number of times, never meet a limit, however long their pieces are.
//
// Errors    Compile: Invalid or Unsupported; Find: TooLarge, once a limit is met.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

struct pcre2_real_code_8;
struct pcre2_real_match_context_8;
struct pcre2_real_match_data_8;

namespace mm01 {

// Immutable; any number of threads may scan with one.
class SplitRegex {
 public:
  static constexpr size_t kMaxPatternBytes = 16 << 10;

  // `pattern` in the dialect of regex_dialect.h; it must not match the empty string.
  static Result<SplitRegex> Compile(std::string_view pattern);
  // A pattern that matches `text` itself.
  static Result<SplitRegex> Literal(std::string_view text);

 private:
  friend class RegexScanner;
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };

  static Result<SplitRegex> CompilePcre2(std::string_view pattern, unsigned options);

  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
};

// The scratch of one thread for texts of together `text_bytes`.
class RegexScanner {
 public:
  static constexpr size_t kFirstWindow = 128;

  explicit RegexScanner(size_t text_bytes);

  enum class Found { kMatch, kNone, kError };

  // The first match in `text` (valid UTF-8) that begins at or after `from`. Sets begin() and end(),
  // or status(). Look-behind sees all of `text`.
  Found Find(const SplitRegex& regex, std::string_view text, size_t from);

  size_t begin() const { return begin_; }
  size_t end() const { return end_; }
  const Status& status() const { return status_; }

 private:
  struct Free {
    void operator()(pcre2_real_match_context_8* context) const;
    void operator()(pcre2_real_match_data_8* data) const;
  };

  int Match(const SplitRegex& regex, std::string_view window, size_t from, bool partial);
  Found Refuse(int error, size_t from);

  std::unique_ptr<pcre2_real_match_context_8, Free> context_;
  std::unique_ptr<pcre2_real_match_data_8, Free> data_;
  size_t budget_;         // bytes of windows beyond the first
  size_t limit_for_ = 0;  // the window that the context's limits were set for
  size_t begin_ = 0, end_ = 0;
  Status status_;
};

}  // namespace mm01
