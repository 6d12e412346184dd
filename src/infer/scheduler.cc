#include "infer/scheduler.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <ranges>
#include <utility>

#include "base/check.h"
#include "infer/next_token.h"
#include "planner/flops.h"

namespace mm01::infer {
namespace {

constexpr double kReportSeconds = 0.3;
constexpr int kMostFetches = 8;  // a file that turns out to be damaged leaves the one before it
constexpr int64_t kLastBorders = 4;
// Most masks are there by then, so that their requests take part in every step.
constexpr std::chrono::microseconds kMaskWait(1000);
constexpr int64_t kWorthWaiting = 4 * kBlock;  // tokens that another request is about to read

int64_t BorderAt(int64_t position) {
  return position / kBlock * kBlock;
}

}  // namespace

Scheduler::Scheduler(Engine& engine, Snapshots& snapshots, const Helpers& helpers,
                     const ServiceOptions& options)
    : engine_(engine),
      snapshots_(snapshots),
      files_(helpers.files),
      masks_(*helpers.masks),
      options_(options),
      on_cpu_(engine.queue().device() == Device::kCpu),
      least_rows_(on_cpu_ ? 1 : kDecodeRows + 1) {}

Scheduler::~Scheduler() {
  CancelAll();
}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  ++stats_.submitted;
  const auto cost = static_cast<double>(sequence->room());
  queue_.Push(std::move(sequence), cost);
}

void Scheduler::Cancel(Service::Id id) {
  if (const std::unique_ptr<Sequence> waiting = queue_.TakeId(id)) {
    End(*waiting, Finish::kCancelled);
    return;
  }
  const auto running = std::ranges::find(running_, id, [](const auto& s) { return s->id; });
  if (running == running_.end()) return;
  End(**running, Finish::kCancelled);
  running_.erase(running);
}

void Scheduler::CancelAll() {
  while (const std::unique_ptr<Sequence> s = queue_.Take([](Sequence&) { return true; })) {
    End(*s, Finish::kCancelled);
  }
  for (const auto& s : running_) End(*s, Finish::kCancelled);
  running_.clear();
}

void Scheduler::FailAll(const Status& status) {
  while (const std::unique_ptr<Sequence> s = queue_.Take([](Sequence&) { return true; })) {
    Fail(*s, status);
  }
  for (const auto& s : running_) {
    if (!s->ended) Fail(*s, status);
  }
  running_.clear();
}

bool Scheduler::Step() {
  Admit();
  if (std::ranges::any_of(running_, [](const auto& s) { return s->waits_for_mask(); })) {
    masks_.Wait(kMaskWait);
  }
  const bool restored = Restore();
  const std::vector<Part> writers = Writers();
  std::vector<Part> readers = Readers(options_.step_rows - std::ssize(writers), !writers.empty());
  const bool computes = !writers.empty() || !readers.empty();
  if (on_cpu_) {
    readers.insert(readers.begin(), writers.begin(), writers.end());
  } else {
    Run(writers);
  }
  Run(readers);
  for (const Part& part : readers) {
    Sequence& s = *part.sequence;
    if (!s.ended && s.reading()) Report(s, s, s.read);
  }
  std::erase_if(running_, [](const auto& s) { return s->ended; });
  stats_.steps += computes ? 1 : 0;
  return computes || restored;
}

// Admission

void Scheduler::Admit() {
  for (auto& [snapshot, ok] :
       files_ ? files_->TakeReadEnds() : std::vector<SnapshotFiles::ReadEnd>()) {
    fetching_.erase(snapshot->key);
    if (ok) snapshots_.Insert(std::move(snapshot));
  }
  while (engine_.state().num_open() < engine_.state().num_slots()) {
    bool blocked = false;
    std::unique_ptr<Sequence> s =
        queue_.Take([&](Sequence& waiting) { return Ready(waiting, &blocked); });
    if (!s) return;
    Start(std::move(s));
  }
}

// `blocked` says that one before it in the queue waits for pages: nobody overtakes that one.
bool Scheduler::Ready(Sequence& s, bool* blocked) {
  if (*blocked) return false;
  const TextState& state = engine_.state();
  const int64_t pages = state.page_bytes() > 0 ? (s.room() + kKvPage - 1) / kKvPage : 0;
  if (pages > state.num_free_pages()) {
    *blocked = true;
    return false;
  }
  if (s.request.prompt_logprobs) return true;
  const std::shared_ptr<const Snapshot> found =
      snapshots_.Find(s.keys, s.prompt_tokens() - least_rows_);
  if (WaitsForFile(s, found.get())) return false;
  return !WaitsForReader(s, found ? found->position : 0);
}

// Whether more of the prompt than `found` is on its way from the disk, or can be. What memory has
// no room for cannot.
bool Scheduler::WaitsForFile(Sequence& s, const Snapshot* found) {
  if (!files_ || s.num_fetches > kMostFetches) return false;
  const int64_t cached = found ? found->position : 0;
  for (int64_t limit = s.prompt_tokens() - least_rows_;;) {
    const int64_t position = files_->Find(s.keys, limit);
    if (position <= cached) return false;
    const PrefixKey& key = s.keys[static_cast<size_t>(position / kBlock - 1)];
    if (fetching_.contains(key)) return true;
    if (std::shared_ptr<Snapshot> room = snapshots_.Allocate(key, found, position)) {
      ++s.num_fetches;
      fetching_.insert(key);
      files_->Read(std::move(room));
      return true;
    }
    limit = position - kBlock;
  }
}

// Whether somebody is reading more of this prompt than is cached. A snapshot is then taken where
// the two part.
bool Scheduler::WaitsForReader(Sequence& s, int64_t cached) {
  const int64_t usable = BorderAt(s.prompt_tokens() - least_rows_);
  for (const auto& reader : running_) {
    if (!reader->reading() || reader->request.salt != s.request.salt) continue;
    const int64_t last = BorderAt(reader->prompt_tokens() - least_rows_);
    const int64_t common = std::min({CommonBlocks(reader->keys, s.keys) * kBlock, usable, last});
    if (common - std::max(cached, reader->read) < kWorthWaiting) continue;
    reader->borders.insert(common);
    if (reader->read > reader->cached) Report(s, *reader, reader->read);
    return true;
  }
  return false;
}

void Scheduler::Start(std::unique_ptr<Sequence> s) {
  s->admitted = s->reported = Clock::now();
  try {
    Open(*s);
  } catch (const std::exception& error) {
    return Fail(*s, Status(Code::kIo, error.what()));
  }
  stats_.prompt_tokens += s->prompt_tokens();
  stats_.cached_tokens += s->cached;
  s->reported_tokens = s->cached;
  if (s->request.filter) {
    auto ahead = std::make_unique<AheadFilter>(masks_, std::move(s->request.filter),
                                               engine_.config().vocab_size);
    s->ahead = ahead.get();
    s->request.filter = std::move(ahead);
  }
  PlanBorders(*s);
  s->listener->On(Reading{.done = s->cached, .total = s->prompt_tokens(), .cached = s->cached});
  running_.push_back(std::move(s));
}

void Scheduler::Open(Sequence& s) {
  TextState& state = engine_.state();
  const Result<int32_t> slot = state.Open();
  Check(slot.ok(), slot.status().message());
  s.slot = *slot;
  const Status room = state.Reserve(s.slot, s.room());
  Check(room.ok(), room.message());
  // Log-probabilities of a prompt need every row of it.
  if (s.request.prompt_logprobs) return;
  const auto found = snapshots_.Find(s.keys, s.prompt_tokens() - least_rows_);
  if (!found) return;
  s.cached = found->position;
  s.restoring.emplace(found);
  ++stats_.snapshots_hit;
}

// True where there was something to copy.
bool Scheduler::Restore() {
  int64_t most_bytes = options_.restore_bytes;
  bool any = false;
  for (const auto& s : running_) {
    if (!s->restoring) continue;
    any = true;
    try {
      if (s->restoring->Go(engine_.queue(), engine_.state(), s->slot, most_bytes)) {
        s->restoring.reset();
        s->read = s->cached;
      }
    } catch (const std::exception& error) {
      Fail(*s, Status(Code::kIo, error.what()));
    }
    most_bytes /= 2;  // all together twice as much at most, and a page each
  }
  return any;
}

// Where snapshots of the prompt are taken: at the last border that a repetition of it can use, at
// regular places, where it parts from earlier prompts, and at the request's own: its last ones, and
// of those before them that lie close together the last.
void Scheduler::PlanBorders(Sequence& s) {
  const int64_t last = BorderAt(s.prompt_tokens() - least_rows_);
  const int64_t every = snapshots_.Interval(s.prompt_tokens(), options_.snapshot_every);
  for (int64_t at = every; at < last; at += every) s.borders.insert(at);
  const int64_t close = std::max(kBlock, every / 16);
  int64_t next = s.prompt_tokens() + close, from_end = 0;
  for (const int64_t border : std::views::reverse(s.request.borders)) {
    const int64_t at = BorderAt(border);
    if (at > last || (++from_end > kLastBorders && next - at < close)) continue;
    s.borders.insert(at);
    next = at;
  }
  s.borders.insert(std::min(last, recent_.CommonWith(s.keys) * kBlock));
  s.borders.insert(last);
  s.borders.erase(s.borders.begin(), s.borders.upper_bound(s.cached));
}

// What a step computes

std::vector<Scheduler::Part> Scheduler::Writers() const {
  std::vector<Part> parts;
  for (const auto& s : running_) {
    if (!s->reading() && !s->waits_for_mask()) parts.push_back({s.get(), 1});
  }
  return parts;
}

// Softmax layers cost a token more with each one before it: so many rows behind what has been read
// cost what `rows` cost at the beginning of a prompt.
int64_t Scheduler::RowsOfEqualWork(const Sequence& s, int64_t rows) const {
  const double first = PrefillFlops(engine_.config(), 0, kBlock);
  const double here = PrefillFlops(engine_.config(), s.read, kBlock);
  return std::max(kBlock, BorderAt(static_cast<int64_t>(static_cast<double>(rows) * first / here)));
}

std::vector<Scheduler::Part> Scheduler::Readers(int64_t rows, bool others_wait) {
  std::vector<Sequence*> readers;
  for (const auto& s : running_) {
    if (s->reading() && !s->restoring && !s->waits_for_mask()) readers.push_back(s.get());
  }
  if (readers.empty()) return {};
  const int64_t share = std::max(kBlock, BorderAt(rows / std::ssize(readers)));
  std::vector<Part> parts;
  // One at least, so that no prompt waits forever.
  for (size_t i = 0; i < readers.size() && (parts.empty() || rows >= kBlock); ++i) {
    Sequence* s = readers[(next_reader_ + i) % readers.size()];
    parts.push_back({s, ChunkOf(*s, others_wait ? RowsOfEqualWork(*s, share) : share)});
    rows -= parts.back().rows;
  }
  next_reader_ = (next_reader_ + parts.size()) % readers.size();
  return parts;
}

// Readers stand on the grid, and `rows` is a multiple of it.
int64_t Scheduler::ChunkOf(const Sequence& s, int64_t rows) const {
  const int64_t total = s.prompt_tokens();
  int64_t end = std::min(total, s.read + rows);
  const auto border = s.borders.upper_bound(s.read);
  // S of a border can be had until the next one is passed.
  if (border != s.borders.end() && BorderAt(end) > *border) end = *border;
  if (end < total && total - end < least_rows_) {
    end = end - kBlock > s.read ? end - kBlock : total;
  }
  return end - s.read;
}

void Scheduler::Run(const std::vector<Part>& parts) {
  if (parts.empty()) return;
  try {
    Compute(parts);
  } catch (const std::exception& error) {
    // The device's or our own: what these sequences hold cannot be trusted any more.
    const Status status(Code::kIo, error.what());
    for (const Part& part : parts) {
      if (!part.sequence->ended) Fail(*part.sequence, status);
    }
  }
}

void Scheduler::Compute(const std::vector<Part>& parts) {
  TextBatch batch;
  for (const auto& [s, rows] : parts) {
    const auto first = s->tokens.begin() + s->read;
    batch.ids.insert(batch.ids.end(), first, first + rows);
    batch.sequences.push_back({s->slot, rows});
  }
  Queue& queue = engine_.queue();
  Scratch scratch(queue);
  const DType type = engine_.weights().activations();
  const int64_t width = engine_.config().hidden_size;
  const Tensor hidden = scratch.GetRows(type, std::ssize(batch.ids), width);
  Forward(engine_.model(), batch, hidden);

  const int64_t row_bytes = width * SizeOf(type);
  const Tensor last_rows = scratch.GetRows(type, std::ssize(parts), width);
  std::vector<Sequence*> ready;  // to write
  int64_t row = 0;
  for (const auto& [s, rows] : parts) {
    if (s->reading()) {
      stats_.read_tokens += rows;
      if (s->request.prompt_logprobs) DescribePrompt(*s, s->read, hidden.Rows(row, row + rows));
    }
    row += rows;
    s->read += rows;
    if (s->reading()) {
      TakeSnapshot(*s);
      continue;
    }
    const int64_t i = std::ssize(ready);
    queue.CopyOnDevice(last_rows.Rows(i, i + 1).data, hidden.Rows(row - 1, row).data, row_bytes);
    ready.push_back(s);
  }
  if (!ready.empty()) Draw(ready, last_rows.Rows(0, std::ssize(ready)));
}

// Of tokens begin + 1 .., which the rows of `hidden` foretell.
void Scheduler::DescribePrompt(Sequence& s, int64_t begin, const Tensor& hidden) {
  const int64_t rows = std::min(hidden.dim(0), s.prompt_tokens() - 1 - begin);
  const auto tokens =
      std::span(s.tokens).subspan(static_cast<size_t>(begin + 1), static_cast<size_t>(rows));
  auto infos = DescribeTokens(engine_, hidden.Rows(0, rows), tokens, s.request.top_logprobs);
  std::ranges::move(infos, std::back_inserter(s.prompt_logprobs));
}

void Scheduler::Draw(const std::vector<Sequence*>& ready, const Tensor& hidden) {
  std::vector<infer::Draw> draws;
  for (const Sequence* s : ready) draws.push_back({.request = s->request, .tokens = s->tokens});
  DrawNextTokens(engine_, hidden, draws);
  for (size_t i = 0; i < ready.size(); ++i) {
    try {
      if (draws[i].error) std::rethrow_exception(draws[i].error);
      Accept(*ready[i], std::move(draws[i].info));
    } catch (const std::exception& error) {  // of this request alone
      if (!ready[i]->ended) Fail(*ready[i], Status(Code::kIo, error.what()));
    }
  }
}

void Scheduler::Accept(Sequence& s, TokenInfo info) {
  if (s.written() == 0) {
    s.prompt_read = Clock::now();
    TakeSnapshot(s);
    s.listener->On(PromptRead{.logprobs = std::move(s.prompt_logprobs)});
    if (s.request.generate.max_tokens == 0) return End(s, Finish::kLength);
  }
  const int32_t token = info.token;
  s.tokens.push_back(token);
  ++stats_.written_tokens;
  if (s.request.filter) s.request.filter->Accept(token);
  Wrote wrote;
  wrote.tokens.push_back(std::move(info));
  bool ends = true;
  Finish finish = Finish::kEnd;
  if (s.request.generate.ignore_end || !engine_.IsEnd(token)) {
    wrote.text = s.text.Push(token);
    finish = s.text.stopped() ? Finish::kStopString : Finish::kLength;
    ends = s.text.stopped() || s.written() == s.request.generate.max_tokens;
  }
  if (ends && !s.text.stopped()) {
    wrote.text += s.text.Finish();
    if (s.text.stopped()) finish = Finish::kStopString;
  }
  s.listener->On(std::move(wrote));
  if (ends) End(s, finish);
}

// That `done` tokens of the prompt have been read, by `reader`, whose speed says how long the rest
// takes: its arithmetic, so that the growing share of the softmax layers is in it.
void Scheduler::Report(Sequence& s, const Sequence& reader, int64_t done) {
  const Clock::time_point now = Clock::now();
  const double since = SecondsBetween(s.reported, now);
  if (since < kReportSeconds) return;
  if (&s == &reader) {
    s.tokens_per_second = static_cast<double>(done - s.reported_tokens) / since;
    s.reported_tokens = done;
  }
  s.reported = now;
  const TextConfig& config = engine_.config();
  const double seconds_per_flop = SecondsBetween(reader.admitted, now) /
                                  PrefillFlops(config, reader.cached, reader.read - reader.cached);
  const double left = PrefillFlops(config, done, s.prompt_tokens() - done);
  s.listener->On(Reading{.done = done,
                         .total = s.prompt_tokens(),
                         .cached = s.cached,
                         .tokens_per_second = reader.tokens_per_second,
                         .seconds_left = left * seconds_per_flop});
}

// How requests end

// At the last border that has been read, where one is due.
void Scheduler::TakeSnapshot(Sequence& s) {
  const auto passed = s.borders.upper_bound(s.read);
  if (passed == s.borders.begin()) return;
  const int64_t due = *std::prev(passed);
  s.borders.erase(s.borders.begin(), passed);
  if (BorderAt(s.read) != due) return;
  try {
    auto snapshot = snapshots_.Take(engine_.queue(), engine_.state(), s.slot, s.keys);
    if (snapshot && files_) files_->Write(std::move(snapshot), s.keys);
  } catch (const std::exception&) {
    // No memory for the copy, or a device that has failed, which the next step will say: either
    // way the request itself needs no snapshot.
  }
}

void Scheduler::End(Sequence& s, Finish finish) {
  if (s.slot >= 0 && (on_cpu_ || s.reading())) {
    ExtendPrefixKeys(s.root, std::span(s.tokens).first(static_cast<size_t>(s.read)), &s.keys);
    s.borders = {BorderAt(s.read)};
    if (BorderAt(s.read) > s.cached) TakeSnapshot(s);
  }
  Release(s);
  const Clock::time_point now = Clock::now();
  Usage usage{.prompt_tokens = s.prompt_tokens(),
              .cached_tokens = s.cached,
              .completion_tokens = s.written()};
  const bool admitted = s.admitted != Clock::time_point();
  const bool was_read = s.prompt_read != Clock::time_point();
  usage.queued_seconds = SecondsBetween(s.submitted, admitted ? s.admitted : now);
  if (admitted) usage.prefill_seconds = SecondsBetween(s.admitted, was_read ? s.prompt_read : now);
  if (was_read) usage.decode_seconds = SecondsBetween(s.prompt_read, now);
  ++(finish == Finish::kCancelled ? stats_.cancelled : stats_.done);
  s.listener->On(Done{.finish = finish, .usage = usage});
}

void Scheduler::Fail(Sequence& s, const Status& status) {
  Release(s);
  ++stats_.failed;
  s.listener->On(Failed{.status = status});
}

void Scheduler::Release(Sequence& s) {
  s.ended = true;
  if (s.slot >= 0) engine_.state().Close(s.slot);
  s.slot = -1;
}

ServiceStats Scheduler::stats() const {
  const TextState& state = engine_.state();
  ServiceStats stats = stats_;
  stats.queued = queue_.size();
  stats.running = std::ssize(running_);
  stats.slots_used = state.num_open();
  stats.slots = state.num_slots();
  if (state.page_bytes() > 0) {
    stats.pages = state.num_pages();
    stats.pages_used = state.num_pages() - state.num_free_pages();
  }
  stats.snapshots = snapshots_.size();
  stats.snapshot_bytes = snapshots_.bytes();
  stats.snapshots_taken = snapshots_.taken();
  stats.snapshots_evicted = snapshots_.evicted();
  if (files_) {
    stats.snapshots_on_disk = files_->size();
    stats.snapshot_disk_bytes = files_->bytes();
    stats.snapshots_damaged = files_->deleted();
  }
  return stats;
}

}  // namespace mm01::infer
