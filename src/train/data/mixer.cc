#include "train/data/mixer.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <optional>
#include <utility>

#include "base/rng.h"
#include "io/file.h"
#include "train/data/documents.h"
#include "train/digest.h"

namespace mm01::train {
namespace {

constexpr int64_t kMaxTokenizerBytes = 128 << 20;
constexpr uint64_t kDrawStream = 1, kTaskStream = 2, kLengthStream = 3;

// A seed for what has a name.
uint64_t SeedFor(uint64_t seed, const std::string& name, int64_t number) {
  for (const char c : name) seed = Mix64(seed ^ static_cast<uint8_t>(c));
  return Mix64(seed ^ static_cast<uint64_t>(number));
}

const SourceSpec* FindSource(const Recipe& recipe, const std::string& name) {
  for (const SourceSpec& s : recipe.sources) {
    if (s.name == name) return &s;
  }
  return nullptr;
}

const TaskSpec& FindTask(const Recipe& recipe, const std::string& name) {
  for (const TaskSpec& t : recipe.tasks) {
    if (t.name == name) return t;
  }
  Fail("a name of the mix is that of a source or a task");
}

Result<std::string> TokenizerDigest(const std::string& folder) {
  const bool is_file = folder.ends_with(".json");
  const std::string path = is_file ? folder : folder + "/tokenizer.json";
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTokenizerBytes));
  return DigestOf(text);
}

// A text file as a data set in memory.
Result<DataSet> EncodeFile(const std::string& path, const Tokenizer& tokenizer) {
  const std::optional<int32_t> end = tokenizer.Find(kEndOfDocument);
  std::vector<TokenSpan> spans;
  MM01_RETURN_IF_ERROR(ReadDocuments(path, [&](Document document) -> Status {
    if (document.messages.is_array()) {
      return Status::Unsupported(path +
                                 ": holds chats, wanted them as a data set: mm01 data build");
    }
    TokenSpan span;
    MM01_ASSIGN_OR_RETURN(span.ids, tokenizer.Encode(document.text, Tokenizer::Special::kAsText));
    if (end) span.ids.push_back(*end);
    span.counted.assign(span.ids.size(), 1);
    spans.push_back(std::move(span));
    return Status::Ok();
  }));
  if (spans.empty()) return Status::Invalid(path + ": is empty, wanted some text");
  return DataSet::InMemory({.source = path, .vocab_size = tokenizer.size()}, spans);
}

// One text: the last token of a document has the next document's first as its target.
Result<Row> ReadWindow(const DataSet& set, int64_t first, int64_t length) {
  TokenSpan span;
  MM01_RETURN_IF_ERROR(set.ReadOn(first, length + 1, &span));
  Row row;
  row.Append(span, true, -1);
  return row;
}

Result<std::vector<Row>> ValidationWindows(const DataSet& set, int64_t tokens, int64_t length) {
  std::vector<Row> rows;
  const int64_t last = std::min(tokens, set.info().num_tokens);
  for (int64_t begin = 0; begin == 0 || begin + length <= last; begin += length) {
    MM01_ASSIGN_OR_RETURN(Row row, ReadWindow(set, begin, length));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

Result<std::shared_ptr<const TrainData>> TrainData::Load(const Recipe& recipe) {
  auto data = std::make_shared<TrainData>();
  MM01_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Load(recipe.tokenizer));
  MM01_ASSIGN_OR_RETURN(const std::string digest, TokenizerDigest(recipe.tokenizer));
  if (tokenizer.size() > recipe.config.vocab_size) {
    return Status::Invalid(fmt::format("{}: model.vocab is {}, wanted at least {}, the ids of {}",
                                       recipe.path, recipe.config.vocab_size, tokenizer.size(),
                                       recipe.tokenizer));
  }
  data->tokenizer = std::make_unique<Tokenizer>(std::move(tokenizer));
  for (const SourceSpec& spec : recipe.sources) {
    if (std::filesystem::is_regular_file(spec.path)) {
      MM01_ASSIGN_OR_RETURN(DataSet set, EncodeFile(spec.path, *data->tokenizer));
      data->sets.emplace(spec.name, std::move(set));
      continue;
    }
    MM01_ASSIGN_OR_RETURN(DataSet set, DataSet::Open(spec.path));
    if (set.info().tokenizer_digest != digest) {
      return Status::Invalid(
          fmt::format("{}: its tokens are of another tokenizer than {}, wanted a data set made "
                      "with --tokenizer {}",
                      spec.path, recipe.tokenizer, recipe.tokenizer));
    }
    data->sets.emplace(spec.name, std::move(set));
  }
  if (!recipe.words.empty()) {
    MM01_ASSIGN_OR_RETURN(data->words, WordList::Load(recipe.words));
  }
  return std::shared_ptr<const TrainData>(std::move(data));
}

void Row::Append(const TokenSpan& span, bool next, int64_t document) {
  const size_t n = span.ids.size() - (next ? 1 : 0);
  for (size_t i = 0; i < n; ++i) {
    ids.push_back(span.ids[i]);
    const bool counted = i + 1 < span.ids.size() && span.counted[i + 1] != 0;
    targets.push_back(counted ? span.ids[i + 1] : -1);
  }
  cu_seqlens.push_back(length());
  documents.push_back(document);
}

Result<TextStream> TextStream::Create(const DataSet& set, const SourceSpec& spec, int64_t length,
                                      uint64_t seed, bool shuffle) {
  TextStream stream(set);
  stream.seed_ = seed;
  stream.shuffle_ = shuffle;
  for (int64_t d = 0; d < set.num_documents(); ++d) {
    const int64_t tokens = set.Length(d);
    if (tokens < spec.min_tokens || tokens > spec.max_tokens) continue;
    const auto first = static_cast<int64_t>(spec.part_begin * static_cast<double>(tokens));
    const auto last = static_cast<int64_t>(spec.part_end * static_cast<double>(tokens));
    for (int64_t begin = first; begin < last; begin += length) {
      const int64_t end = std::min(last, begin + length);
      stream.pieces_.push_back({.document = d, .begin = begin, .end = end, .next = end < last});
    }
    stream.epoch_tokens_ += last - first;
  }
  if (stream.pieces_.empty()) {
    return Status::Invalid(
        fmt::format("source '{}': none of the {} documents of {} has {} to {} tokens", spec.name,
                    set.num_documents(), spec.path, spec.min_tokens, spec.max_tokens));
  }
  return stream;
}

void TextStream::Order(int64_t epoch) {
  if (epoch == epoch_) return;
  epoch_ = epoch;
  order_.resize(pieces_.size());
  std::iota(order_.begin(), order_.end(), 0u);
  if (shuffle_) {
    Draw draw(seed_, static_cast<uint64_t>(epoch));
    for (size_t i = order_.size() - 1; i > 0; --i) {
      std::swap(order_[i], order_[static_cast<size_t>(draw.Below(static_cast<int64_t>(i) + 1))]);
    }
  }
  begins_.clear();
  int64_t at = 0;
  for (const uint32_t i : order_) {
    begins_.push_back(at);
    at += pieces_[i].end - pieces_[i].begin;
  }
}

Status TextStream::Read(int64_t begin, int64_t count, Row* row) {
  while (count > 0) {
    Order(begin / epoch_tokens_);
    const int64_t within = begin % epoch_tokens_;
    const auto after = std::upper_bound(begins_.begin(), begins_.end(), within);
    const auto i = static_cast<size_t>(after - begins_.begin()) - 1;
    const Piece& piece = pieces_[order_[i]];
    const int64_t first = piece.begin + within - begins_[i];
    const int64_t n = std::min(count, piece.end - first);
    const bool next = first + n < piece.end || piece.next;
    TokenSpan span;
    MM01_RETURN_IF_ERROR(set_->Read(piece.document, first, n + (next ? 1 : 0), &span));
    row->Append(span, next, piece.document);
    begin += n;
    count -= n;
  }
  return Status::Ok();
}

std::vector<RowPlan> Mixer::Next(int64_t step) {
  const Recipe::Place place = recipe_.At(step);
  if (place.stage != position_.stage) position_.tokens.clear();
  position_.stage = place.stage;
  const int64_t num_rows = stage().BatchTokens(place.step_of_stage) / stage().length;
  const double done = static_cast<double>(place.step_of_stage) / static_cast<double>(stage().steps);
  std::vector<RowPlan> plans;
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t number = position_.rows++;
    double u = RandomUniform(recipe_.seed, kDrawStream, static_cast<uint64_t>(number));
    const Share* chosen = nullptr;
    for (const Share& share : stage().mix) {
      const double now = share.begin + (share.end - share.begin) * done;
      if (now <= 0) continue;
      chosen = &share;
      if (u < now) break;
      u -= now;
    }
    RowPlan plan{.name = chosen->name, .number = number};
    if (FindSource(recipe_, chosen->name) != nullptr) {
      int64_t& taken = position_.tokens[chosen->name];
      plan.begin = taken;
      taken += stage().length;
    }
    plans.push_back(std::move(plan));
  }
  return plans;
}

Result<Row> Mixer::Make(const RowPlan& plan) {
  if (const SourceSpec* spec = FindSource(recipe_, plan.name)) return MakeText(*spec, plan);
  return MakeTask(FindTask(recipe_, plan.name), plan);
}

Result<std::vector<Row>> Mixer::MakeMany(ThreadPool& pool, std::span<const RowPlan> plans) {
  std::vector<Result<Row>> made(plans.size(), Row());
  std::vector<size_t> tasks;
  for (size_t i = 0; i < plans.size(); ++i) {
    if (FindSource(recipe_, plans[i].name) == nullptr) {
      tasks.push_back(i);
    } else {
      made[i] = Make(plans[i]);
    }
  }
  pool.ParallelFor(std::ssize(tasks), [&](int64_t n, int) {
    const size_t i = tasks[static_cast<size_t>(n)];
    made[i] = MakeTask(FindTask(recipe_, plans[i].name), plans[i]);
  });
  std::vector<Row> rows;
  for (Result<Row>& row : made) {
    MM01_RETURN_IF_ERROR(row.status());
    rows.push_back(std::move(*row));
  }
  return rows;
}

Result<Row> Mixer::MakeText(const SourceSpec& spec, const RowPlan& plan) {
  if (!spec.resets) {
    const DataSet& set = data_.sets.at(plan.name);
    Draw draw(SeedFor(recipe_.seed, plan.name, plan.number), kTaskStream);
    return ReadWindow(set, draw.Below(set.info().num_tokens), stage().length);
  }
  if (streams_stage_ != position_.stage) streams_.clear();
  streams_stage_ = position_.stage;
  auto found = streams_.find(plan.name);
  if (found == streams_.end()) {
    const uint64_t seed = SeedFor(recipe_.seed, plan.name, position_.stage);
    MM01_ASSIGN_OR_RETURN(TextStream stream,
                          TextStream::Create(data_.sets.at(plan.name), spec, stage().length, seed));
    found = streams_.emplace(plan.name, std::move(stream)).first;
  }
  Row row;
  MM01_RETURN_IF_ERROR(found->second.Read(plan.begin, stage().length, &row));
  return row;
}

// Samples of random lengths end to end; the last is as long as what is left.
Result<Row> Mixer::MakeTask(const TaskSpec& spec, const RowPlan& plan) const {
  std::optional<DataSetHaystack> haystack;
  if (!spec.haystack.empty()) haystack.emplace(data_.sets.at(spec.haystack));
  const TaskMaker maker(spec, *data_.tokenizer, data_.words, haystack ? &*haystack : nullptr);
  const uint64_t seed = SeedFor(recipe_.seed, spec.name, plan.number);
  Draw lengths(seed, kLengthStream);
  Row row;
  for (uint64_t sample = 0; row.length() < stage().length; ++sample) {
    const int64_t left = stage().length - row.length();
    int64_t length = std::min(left, lengths.Between(spec.length.min, spec.length.max));
    if (left - length < spec.length.min) length = left;
    MM01_ASSIGN_OR_RETURN(const TokenSpan span,
                          maker.Make(Mix64(seed ^ kTaskStream), sample, length));
    row.Append(span, false, -1);
  }
  return row;
}

Result<std::vector<Row>> ValidationRows(const Recipe& recipe, const TrainData& data,
                                        int64_t length) {
  const std::string& name = recipe.validation.source;
  if (!FindSource(recipe, name)->resets) {
    return ValidationWindows(data.sets.at(name), recipe.validation.tokens, length);
  }
  MM01_ASSIGN_OR_RETURN(TextStream stream,
                        TextStream::Create(data.sets.at(name), *FindSource(recipe, name), length,
                                           SeedFor(0, name, length)));
  std::vector<Row> rows;
  const int64_t tokens = std::min(recipe.validation.tokens, stream.epoch_tokens());
  for (int64_t begin = 0; begin == 0 || begin + length <= tokens; begin += length) {
    Row row;
    MM01_RETURN_IF_ERROR(stream.Read(begin, std::min(length, tokens - begin), &row));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace mm01::train
