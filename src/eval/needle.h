// Magic-number retrieval: a sentence with a seven-digit number hidden in a long text, among others
// with other keys, and asked for at the end.
//
// Keys are of two held-out words each. The depth of the sentence that is asked for, as a share of
// the text, is spread evenly over the trials from 0.05 to 0.95; the others lie anywhere. The model
// writes greedily; a hit is all seven digits.
//
// Trials may share a document: several of its keys are asked for, each right behind the text as if
// no other had been. The text is then read once for all of them.
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
  int64_t length = 2048;  // tokens of text, needles and the longest question together
  int64_t trials = 10;    // a multiple of `questions`
  int64_t keys = 4;
  int64_t questions = 1;  // of a document: at most its keys
  uint64_t seed = 0;
};

struct NeedleQuestion {
  double depth = 0;
  std::string key, value;
  std::vector<int32_t> ids;
};

struct NeedleDocument {
  std::vector<int32_t> ids;  // options.length of them less the longest question's
  std::vector<NeedleQuestion> questions;
};

// Document 0 .. trials / questions - 1: a function of the arguments. `haystack` is read from a
// random place on, again from its begin where it ends. Errors: Invalid where needles and question
// alone are longer than the length, or the options do not fit each other.
Result<NeedleDocument> MakeNeedleDocument(const Tokenizer& tokenizer,
                                          std::span<const int32_t> haystack,
                                          const std::vector<std::string>& words,
                                          const NeedleOptions& options, int64_t document);

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
