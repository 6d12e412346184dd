// Writing: sample a token, read it, again, until something says stop.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "infer/session.h"
#include "kernels/sample/sample.h"

namespace mm01::infer {

struct GenerateOptions {
  SamplingParams sampling;
  int64_t max_tokens = 256;
  std::vector<std::string> stop;  // the text ends before the first of these
  bool ignore_end = false;        // go on past end-of-sequence
};

enum class Finish { kEnd, kStopString, kLength, kCancelled };

struct GenerateResult {
  std::vector<int32_t> tokens;  // sampled, the one that ended the text included
  std::string text;             // without special tokens and without the stop string
  Finish finish = Finish::kLength;
  double seconds = 0.0;
};

// Called with each piece of text that is certain: no stop string can begin in it, and it is whole
// UTF-8. Returning false stops.
using OnText = std::function<bool(std::string_view text)>;

// Writes after what `session` has read, which must be something. A token that ends the text is not
// read. Errors are those of Session::Read.
Result<GenerateResult> Generate(Session& session, const GenerateOptions& options,
                                const OnText& on_text = {});

const char* ToString(Finish finish);  // "end", "stop", "length", "cancelled"

}  // namespace mm01::infer
