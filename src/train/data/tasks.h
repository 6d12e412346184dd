// Synthetic samples for learning to look things up in a long context, made from a seed.
//
//   needle     "The special magic number for KEY is: 1234567." strewn in a text, then questions
//   recall     "KEY: 1234567" on lines of their own, then "KEY: " again
//   variables  "VAR A = 12345", "VAR B = VAR A", ... strewn in a text, then which hold 12345
//
// Questions stand at the end in random order, or anywhere behind what they ask for. A sample has
// exactly as many tokens as asked for: keys are left out where they do not fit, and text of the
// haystack fills what is left.
// Errors    Invalid where not one key with its question fits.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/tokenizer.h"
#include "train/data/shard.h"
#include "train/data/words.h"
#include "train/recipe.h"

namespace mm01::train {

// Tokens of a haystack: `count` of them from anywhere, in the order they lie.
class Haystack {
 public:
  virtual ~Haystack() = default;
  virtual Result<std::vector<int32_t>> Take(int64_t count, Draw& draw) const = 0;
};

// `count` tokens of a data set from a random place on, over the ends of documents.
class DataSetHaystack final : public Haystack {
 public:
  explicit DataSetHaystack(const DataSet& set) : set_(set) {}
  Result<std::vector<int32_t>> Take(int64_t count, Draw& draw) const override;

 private:
  const DataSet& set_;
};

class TaskMaker {
 public:
  // All must outlive this; `haystack` is null for kRecall.
  TaskMaker(const TaskSpec& spec, const Tokenizer& tokenizer, const WordList& words,
            const Haystack* haystack)
      : spec_(spec), tokenizer_(tokenizer), words_(words), haystack_(haystack) {}

  // A sample of exactly `length` tokens; a function of (seed, stream, length).
  Result<TokenSpan> Make(uint64_t seed, uint64_t stream, int64_t length) const;

 private:
  // A fact and what asks for it.
  struct Item {
    TokenSpan fact, question;
  };

  Result<TokenSpan> Encode(const std::string& text, bool counted) const;
  Result<Item> Encode(const std::string& fact, const std::string& question,
                      const std::string& answer) const;
  Result<std::vector<Item>> NeedleItems(Draw& draw, int64_t num_keys) const;
  Result<std::vector<Item>> RecallItems(Draw& draw, int64_t num_keys) const;
  Result<std::vector<Item>> VariableItems(Draw& draw, int64_t num_chains) const;
  Result<std::vector<Item>> Items(Draw& draw, int64_t num_keys) const;
  static void Fit(int64_t num_questions, int64_t length, std::vector<Item>* items);
  Result<TokenSpan> Strew(Draw& draw, const std::vector<Item>& items, int64_t num_questions,
                          int64_t length) const;

  const TaskSpec& spec_;
  const Tokenizer& tokenizer_;
  const WordList& words_;
  const Haystack* haystack_;
};

}  // namespace mm01::train
