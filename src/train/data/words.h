// The words that keys of synthetic tasks are made of, and the sentences of the magic numbers.
//
// Every tenth word of the list is held out: training never sees it in a key, so that a model which
// answers for such keys has learnt to look and not the keys.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace mm01::train {

struct WordList {
  std::vector<std::string> training;
  std::vector<std::string> held_out;

  // A JSON array of 100 words or more that differ.
  static Result<WordList> Load(const std::string& path);
};

// Draws words and digits: numbers n = 0, 1, ... of the stream (seed, stream), each used once.
class Draw {
 public:
  Draw(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  int64_t Below(int64_t n);                   // 0 .. n-1
  int64_t Between(int64_t min, int64_t max);  // min .. max
  double Uniform();                           // [0, 1)
  std::string Digits(int64_t count);
  // Two words each; no two keys share a word.
  std::vector<std::string> Keys(const std::vector<std::string>& words, int64_t count);
  std::vector<int64_t> Permutation(int64_t count);

 private:
  uint64_t seed_, stream_;
  uint64_t next_ = 0;
};

inline constexpr int64_t kMagicDigits = 7;

std::string NeedleSentence(std::string_view key, std::string_view value);
std::string NeedleQuestion(std::string_view key);  // ends where the value begins

}  // namespace mm01::train
