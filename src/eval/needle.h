// Magic-number retrieval: a sentence with a seven-digit number hidden in a long text, among others
// with other keys, and asked for at the end.
//
// Keys are of two held-out words each. The depth of the sentence that is asked for, as a share of
// the text, is spread evenly over the trials from 0.05 to 0.95; the others lie anywhere. The model
// writes greedily; a hit is all seven digits.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "infer/engine.h"

namespace mm01::eval {

struct NeedleOptions {
  int64_t length = 2048;  // tokens of text, needles and question together
  int64_t trials = 10;
  int64_t keys = 4;
  uint64_t seed = 0;
};

struct NeedlePrompt {
  std::vector<int32_t> ids;  // options.length of them
  double depth = 0;
  std::string key, value;
};

// The prompt of one trial: a function of the arguments. `haystack` is read from a random place on,
// again from its begin where it ends. Errors: Invalid where needles and question alone are longer.
Result<NeedlePrompt> MakeNeedlePrompt(const Tokenizer& tokenizer, std::span<const int32_t> haystack,
                                      const std::vector<std::string>& words,
                                      const NeedleOptions& options, int64_t trial);

struct NeedleTrial {
  double depth = 0;
  std::string key, value, answer;
  bool hit = false;
};

struct NeedleReport {
  std::vector<NeedleTrial> trials;
  double accuracy = 0;
};

// Tokens that a session needs room for.
int64_t NeedleContext(int64_t length);

// `progress` gets tokens read and in all, and stops the run by returning false.
Result<NeedleReport> MeasureNeedles(infer::Engine& engine, std::span<const int32_t> haystack,
                                    const std::vector<std::string>& words,
                                    const NeedleOptions& options,
                                    const std::function<bool(int64_t, int64_t)>& progress = {});

}  // namespace mm01::eval
