// The pre_tokenizer of tokenizer.json: cuts text into the pieces that BPE works on.
//
// Read: ByteLevel, Split, Digits and Sequence, nested as they like, with ByteLevel last and only
// there. What a piece of text is spelled with (byte_level.h) is of no concern here: pieces are
// plain bytes.
//
//   ByteLevel  use_regex: the GPT-2 pattern; add_prefix_space: puts a space before each part of the
//              text (whatever earlier steps made of it) that has none
//   Split      pattern {"Regex"} or {"String"}, behavior Removed, Isolated, MergedWithPrevious,
//              MergedWithNext or Contiguous, invert
//   Digits     individual_digits
//
// Limits    16 steps, patterns as in split_regex.h.
// Cost      O(n) time, O(1) memory beside the pieces.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"
#include "io/split_regex.h"

namespace mm01 {

class PreTokenizer {
 public:
  // `json` is the value of "pre_tokenizer", and `where` names the file. Errors: Invalid,
  // Unsupported or TooLarge, with the place.
  static Result<PreTokenizer> Parse(const Json& json, const std::string& where);

  using Sink = std::function<Status(std::string_view piece)>;

  // Hands the pieces of `text` (valid UTF-8) to `sink`, in order and none of them empty. A piece
  // lives until sink returns. The error is the scanner's, or the first of sink's, which ends it.
  Status Run(std::string_view text, RegexScanner& scanner, const Sink& sink) const;

 private:
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  struct Step {
    std::optional<SplitRegex> regex;
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;            // what lies between the matches counts as matched
    bool add_prefix_space = false;  // before the split
  };
  struct Part {
    size_t begin, end;
    bool matched;
  };

  Status AddStep(const Json& json, const std::string& where);
  Status AddByteLevel(const Json& json, const std::string& where);
  Status AddSplit(const Json& json, const std::string& where);
  Status AddDigits(const Json& json, const std::string& where);
  Status RunFrom(size_t step, std::string_view text, RegexScanner& scanner, const Sink& sink) const;
  static bool Joins(Behavior behavior, const Part& left, const Part& right);

  std::vector<Step> steps_;
  bool byte_level_ = false;  // the ByteLevel step was read
};

}  // namespace mm01
