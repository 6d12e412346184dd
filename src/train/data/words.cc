#include "train/data/words.h"

#include <fmt/core.h>

#include <numeric>
#include <set>
#include <utility>

#include "base/json.h"
#include "base/rng.h"
#include "io/file.h"

namespace mm01::train {
namespace {

constexpr int64_t kMaxBytes = 64 << 20;
constexpr size_t kHeldOutEvery = 10;

}  // namespace

Result<WordList> WordList::Load(const std::string& path) {
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxBytes));
  MM01_ASSIGN_OR_RETURN(const Json json, ParseJson(text, path));
  std::set<std::string> seen;
  WordList list;
  const auto wrong = [&] {
    return Status::Invalid(path + ": wanted a JSON array of 100 words or more that differ");
  };
  if (!json.is_array() || json.size() < 100) return wrong();
  for (const Json& word : json) {
    if (!word.is_string() || !seen.insert(word.get<std::string>()).second) return wrong();
    const bool held_out = seen.size() % kHeldOutEvery == 0;
    (held_out ? list.held_out : list.training).push_back(word.get<std::string>());
  }
  return list;
}

int64_t Draw::Below(int64_t n) {
  Check(n >= 1, "a draw needs something to draw from");
  return static_cast<int64_t>(Uniform() * static_cast<double>(n));
}

int64_t Draw::Between(int64_t min, int64_t max) {
  return min + Below(max - min + 1);
}

double Draw::Uniform() {
  return RandomUniform(seed_, stream_, next_++);
}

std::string Draw::Digits(int64_t count) {
  std::string digits;
  for (int64_t i = 0; i < count; ++i) digits += static_cast<char>('0' + Below(10));
  return digits;
}

std::vector<std::string> Draw::Keys(const std::vector<std::string>& words, int64_t count) {
  const auto n = static_cast<int64_t>(words.size());
  Check(2 * count <= n, "keys need two words each");
  std::set<int64_t> used;
  const auto word = [&]() -> const std::string& {
    int64_t i = Below(n);
    while (!used.insert(i).second) i = (i + 1) % n;
    return words[static_cast<size_t>(i)];
  };
  std::vector<std::string> keys;
  for (int64_t i = 0; i < count; ++i) {
    const std::string& first = word();
    keys.push_back(first + " " + word());
  }
  return keys;
}

std::vector<int64_t> Draw::Permutation(int64_t count) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  for (int64_t i = count - 1; i > 0; --i) {
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(Below(i + 1))]);
  }
  return order;
}

std::string NeedleSentence(std::string_view key, std::string_view value) {
  return fmt::format("\nThe special magic number for {} is: {}.\n", key, value);
}

std::string NeedleQuestion(std::string_view key) {
  return fmt::format(
      "\nWhat is the special magic number for {0}? The special magic number for {0} is: ", key);
}

}  // namespace mm01::train
