// The rows of every step: documents and synthetic samples packed end to end.
//
// Letters   R rows of a step, n tokens of a row.
//
// A row comes from one source or task, drawn by the stage's shares. A source's documents are cut
// into pieces of at most n tokens, the pieces shuffled for every epoch and laid end to end; a row
// is the next n tokens of that, whatever it cuts. A target is the token behind, in the document;
// the last token of a document has none. A source without resets gives windows in place of pieces.
//
// Everything is a function of the recipe's seed and the position: the number of rows that were
// drawn, and of tokens that were taken from each source in this stage. So a run goes on where it
// stopped, on any number of ranks.
// Cost      48 bytes a piece of every source; a row is read when it is made.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "io/tokenizer.h"
#include "train/data/shard.h"
#include "train/data/tasks.h"
#include "train/data/words.h"
#include "train/recipe.h"

namespace mm01::train {

// What ranks share: it does not change. A map's nodes stay where they are.
struct TrainData {
  std::map<std::string, DataSet> sets;  // by the source's name
  WordList words;
  std::unique_ptr<Tokenizer> tokenizer;

  // Errors    those of the files; Invalid where a data set was made with another tokenizer, or the
  //           tokenizer has ids beyond the model's vocabulary.
  static Result<std::shared_ptr<const TrainData>> Load(const Recipe& recipe);
};

// Where the data stands; what a checkpoint keeps.
struct DataPosition {
  int64_t rows = 0;   // drawn since step 0
  int64_t stage = 0;  // that `tokens` counts in
  std::map<std::string, int64_t> tokens;

  friend bool operator==(const DataPosition&, const DataPosition&) = default;
};

// What a row is, before it is read.
struct RowPlan {
  std::string name;    // of a source or task
  int64_t number = 0;  // among the rows of the run
  int64_t begin = 0;   // of a source: tokens taken before it
};

// n tokens of documents; the same letters as TrainBatch.
struct Row {
  std::vector<int32_t> ids;
  std::vector<int32_t> targets;
  std::vector<int64_t> cu_seqlens = {0};
  std::vector<int64_t> documents;  // of a source: which document each piece is of; else -1

  int64_t length() const { return static_cast<int64_t>(ids.size()); }
  // A document's tokens; where `next`, the last of them is a target only.
  void Append(const TokenSpan& span, bool next, int64_t document);
};

// The pieces of one source, in the order of each epoch.
class TextStream {
 public:
  // Errors: Invalid where the limits leave no document.
  static Result<TextStream> Create(const DataSet& set, const SourceSpec& spec, int64_t length,
                                   uint64_t seed, bool shuffle = true);

  int64_t epoch_tokens() const { return epoch_tokens_; }
  // Tokens begin .. begin + count - 1 of all epochs, end to end, added to `row`.
  Status Read(int64_t begin, int64_t count, Row* row);

 private:
  struct Piece {
    int64_t document = 0;
    int64_t begin = 0;
    int64_t end = 0;
    bool next = false;  // the part goes on behind it
  };
  explicit TextStream(const DataSet& set) : set_(&set) {}
  void Order(int64_t epoch);

  const DataSet* set_;
  uint64_t seed_ = 0;
  bool shuffle_ = true;
  int64_t epoch_tokens_ = 0;
  std::vector<Piece> pieces_;
  int64_t epoch_ = -1;           // that order_ and begins_ are of
  std::vector<uint32_t> order_;  // of pieces
  std::vector<int64_t> begins_;  // of pieces in that order
};

class Mixer {
 public:
  // Both must outlive this.
  Mixer(const Recipe& recipe, const TrainData& data) : recipe_(recipe), data_(data) {}

  const DataPosition& position() const { return position_; }
  void Seek(const DataPosition& position) { position_ = position; }

  // The rows of a step, which are then taken.
  std::vector<RowPlan> Next(int64_t step);
  // The row of a plan of the position's stage.
  Result<Row> Make(const RowPlan& plan);
  // Those of many plans; synthetic samples are made side by side.
  Result<std::vector<Row>> MakeMany(ThreadPool& pool, std::span<const RowPlan> plans);

 private:
  const StageSpec& stage() const { return recipe_.stages[static_cast<size_t>(position_.stage)]; }
  Result<Row> MakeText(const SourceSpec& spec, const RowPlan& plan);
  Result<Row> MakeTask(const TaskSpec& spec, const RowPlan& plan) const;

  const Recipe& recipe_;
  const TrainData& data_;
  DataPosition position_;
  int64_t streams_stage_ = -1;  // that streams_ are of
  std::map<std::string, TextStream> streams_;
};

// `tokens` / `length` rows of the validation source, the same every time.
Result<std::vector<Row>> ValidationRows(const Recipe& recipe, const TrainData& data,
                                        int64_t length);

}  // namespace mm01::train
