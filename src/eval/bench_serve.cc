#include "eval/bench_serve.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "eval/bench_tools.h"
#include "infer/service.h"
#include "io/file.h"
#include "planner/flops.h"

namespace mm01::eval {
namespace {

using infer::Engine;
using infer::Request;
using infer::Service;

constexpr int64_t kQuestion = 48;  // tokens
constexpr int64_t kEvery = 4096;   // tokens between snapshots
constexpr int64_t kRoom = 2048;    // of a sequence, beside the document

// What one request led to, and when.
class Probe : public infer::Listener {
 public:
  void On(infer::Event event) override {
    const double now = Now();
    {
      const std::lock_guard lock(mutex_);
      if (const auto* wrote = std::get_if<infer::Wrote>(&event)) {
        times_.push_back(now);
        for (const auto& info : wrote->tokens) tokens_.push_back(info.token);
      }
      if (const auto* done = std::get_if<infer::Done>(&event)) usage_ = done->usage;
      if (const auto* failed = std::get_if<infer::Failed>(&event)) failed_ = failed->status;
      ended_ = usage_ || failed_;
    }
    changed_.notify_all();
  }
  Status Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ended_; });
    return failed_.value_or(Status::Ok());
  }
  bool ended() {
    const std::lock_guard lock(mutex_);
    return ended_;
  }
  void WaitForTokens(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ended_ || times_.size() >= n; });
  }

  // After Wait.
  double first_token() const { return times_.empty() ? 0 : times_.front(); }
  double last_token() const { return times_.empty() ? 0 : times_.back(); }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const infer::Usage& usage() const { return *usage_; }
  // Seconds between tokens that came from `begin` to `end`.
  std::vector<double> Gaps(double begin, double end) const {
    std::vector<double> gaps;
    for (size_t i = 1; i < times_.size(); ++i) {
      if (times_[i] >= begin && times_[i - 1] <= end) gaps.push_back(times_[i] - times_[i - 1]);
    }
    return gaps;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<double> times_;
  std::vector<int32_t> tokens_;
  std::optional<infer::Usage> usage_;
  std::optional<Status> failed_;
  bool ended_ = false;
};

struct Answer {
  double seconds = 0;  // to the first token
  int64_t cached = 0;
  std::vector<int32_t> tokens;
};

// Of all files in a folder: from the disk, where the system does as it is told.
void DropCaches(const std::string& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const Descriptor file(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() < 0) continue;
    ::fdatasync(file.get());
    [[maybe_unused]] const int hint = ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  }
}

// Bytes a second of reading all files in a folder, one after the other.
double ReadRate(const std::string& folder) {
  std::vector<char> block(size_t{4} << 20);
  double bytes = 0;
  const double start = Now();
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const Descriptor file(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    while (file.get() >= 0) {
      const ssize_t got = ::read(file.get(), block.data(), block.size());
      if (got <= 0) break;
      bytes += static_cast<double>(got);
    }
  }
  return bytes / (Now() - start);
}

class ServeBench {
 public:
  ServeBench(const ServeBenchOptions& options, const std::function<void(const BenchLine&)>& on_line)
      : options_(options), on_line_(on_line) {}

  Result<std::vector<BenchLine>> Run() {
    MM01_RETURN_IF_ERROR(StartService());
    document_ = Tokens(1, options_.document_tokens);
    MM01_RETURN_IF_ERROR(Questions());
    MM01_RETURN_IF_ERROR(Cut());
    MM01_RETURN_IF_ERROR(Restart());
    service_.reset();
    if (options_.num_streams > 0) MM01_RETURN_IF_ERROR(Streams());
    return std::move(lines_);
  }

 private:
  void Add(BenchLine line) {
    if (on_line_) on_line_(line);
    lines_.push_back(std::move(line));
  }

  Status StartService() {
    service_.reset();
    MM01_ASSIGN_OR_RETURN(
        auto engine,
        Engine::Load(options_.model, {.device = options_.device,
                                      .num_threads = options_.num_threads,
                                      .context_tokens = options_.document_tokens + kRoom,
                                      .num_sequences = 2,
                                      .prefill_rows = options_.step_rows}));
    config_ = engine->config();
    const TextState& state = engine->state();
    const int64_t pages = options_.document_tokens / kKvPage;
    text_bytes_ = static_cast<double>(pages * state.page_bytes() + state.border_bytes());
    // Two documents and what differs, and a quarter for S of each interval.
    const int64_t room = 3 * pages * state.page_bytes() +
                         8 * (options_.document_tokens / kEvery + 16) * state.border_bytes();
    MM01_ASSIGN_OR_RETURN(service_,
                          Service::Start(std::move(engine), {.step_rows = options_.step_rows,
                                                             .snapshot_every = kEvery,
                                                             .snapshot_bytes = room,
                                                             .snapshot_dir = options_.folder,
                                                             .snapshot_disk_bytes = 2 * room}));
    // Scratch memory finds its size, and a GPU's kernels are loaded.
    for (const int64_t n : {options_.step_rows, int64_t{200}}) {
      MM01_RETURN_IF_ERROR(Ask(Tokens(90, std::min(n, options_.document_tokens)), "warm").status());
    }
    return Status::Ok();
  }

  std::vector<int32_t> Tokens(uint64_t stream, int64_t count) const {
    return RandomTokens(stream, count, config_.vocab_size);
  }
  std::vector<int32_t> WithQuestion(std::vector<int32_t> text, uint64_t question) const {
    const std::vector<int32_t> asked = Tokens(100 + question, kQuestion);
    text.insert(text.end(), asked.begin(), asked.end());
    return text;
  }
  static Request Of(std::vector<int32_t> prompt, const std::string& salt, int64_t max_tokens) {
    Request request;
    request.prompt = std::move(prompt);
    request.generate.sampling.temperature = 0;
    request.generate.max_tokens = max_tokens;
    request.generate.ignore_end = true;
    request.salt = salt;
    return request;
  }

  Result<Answer> Ask(std::vector<int32_t> prompt, const std::string& salt) {
    const auto probe = std::make_shared<Probe>();
    const double start = Now();
    MM01_RETURN_IF_ERROR(service_->Submit(Of(std::move(prompt), salt, 2), probe).status());
    MM01_RETURN_IF_ERROR(probe->Wait());
    return Answer{.seconds = probe->first_token() - start,
                  .cached = probe->usage().cached_tokens,
                  .tokens = probe->tokens()};
  }

  double Work(int64_t from, int64_t to) const { return PrefillFlops(config_, from, to - from); }

  Status Questions() {
    const int64_t n = options_.document_tokens + kQuestion;
    MM01_ASSIGN_OR_RETURN(const Answer first, Ask(WithQuestion(document_, 1), "a"));
    first_ = first.seconds;
    Add({.name = "serve first question", .value = first_, .unit = "s"});
    MM01_ASSIGN_OR_RETURN(const Answer second, Ask(WithQuestion(document_, 2), "a"));
    second_tokens_ = second.tokens;
    Add({.name = "serve second question",
         .value = 100 * second.seconds / first_,
         .unit = "%",
         .ceiling = 5,
         .of = "5 % of the first, at most"});
    const int64_t at = options_.document_tokens / 4 * 3;
    std::vector<int32_t> edited = document_;
    edited[static_cast<size_t>(at)] = (edited[static_cast<size_t>(at)] + 1) % 64;
    MM01_ASSIGN_OR_RETURN(const Answer edit, Ask(WithQuestion(std::move(edited), 1), "a"));
    const double all = Work(0, n);
    const double most = 1.1 * Work(at, n) + Work(std::max<int64_t>(0, at - kEvery), at);
    Add({.name = "serve edit at 75 %, work",
         .value = 100 * Work(edit.cached, n) / all,
         .unit = "%",
         .ceiling = 100 * most / all,
         .of = "1.1 times what follows, and an interval, at most"});
    Add({.name = "serve edit at 75 %, time",
         .value = 100 * edit.seconds / first_,
         .unit = "%",
         .ceiling = 100 * most / all,
         .of = "likewise, of the first question's"});
    return Status::Ok();
  }

  // A stream that writes beside the others until Stop.
  struct Writer {
    std::shared_ptr<Probe> probe = std::make_shared<Probe>();
    Service::Id id = 0;
  };
  Result<Writer> StartWriter() {
    Writer writer;
    MM01_ASSIGN_OR_RETURN(
        writer.id,
        service_->Submit(Of(Tokens(7, 40), "w", options_.document_tokens), writer.probe));
    writer.probe->WaitForTokens(64);
    return writer;
  }
  void AddGaps(const std::string& when, std::vector<double> gaps) {
    if (gaps.empty()) return;
    std::ranges::sort(gaps);
    const auto at = [&](double share) {
      return gaps[static_cast<size_t>(share * static_cast<double>(gaps.size() - 1))] * 1e3;
    };
    Add({.name = "serve gap " + when + ", median", .value = at(0.5), .unit = "ms"});
    Add({.name = "serve gap " + when + ", longest", .value = at(1), .unit = "ms"});
  }

  Status Cut() {
    const std::vector<int32_t> prompt = WithQuestion(Tokens(2, options_.document_tokens), 1);
    const auto n = std::ssize(prompt);
    MM01_ASSIGN_OR_RETURN(const Writer writer, StartWriter());
    const double alone = Now();
    const int64_t before = service_->stats().read_tokens;
    const auto gone = std::make_shared<Probe>();
    MM01_ASSIGN_OR_RETURN(const Service::Id id, service_->Submit(Of(prompt, "b", 1), gone));
    while (!gone->ended() && service_->stats().read_tokens - before < n * 6 / 10) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    service_->Cancel(id);
    MM01_RETURN_IF_ERROR(gone->Wait());
    const double end = Now();
    const int64_t read = service_->stats().read_tokens - before;
    const auto whole = std::make_shared<Probe>();
    const double again = Now();
    MM01_RETURN_IF_ERROR(service_->Submit(Of(WithQuestion(document_, 3), "a", 1), whole).status());
    MM01_RETURN_IF_ERROR(whole->Wait());
    const double restored = Now();
    service_->Cancel(writer.id);
    MM01_RETURN_IF_ERROR(writer.probe->Wait());
    AddGaps("alone", writer.probe->Gaps(0, alone));
    AddGaps("beside a long prompt", writer.probe->Gaps(alone, end));
    AddGaps("beside a snapshot restored", writer.probe->Gaps(again, restored));
    MM01_ASSIGN_OR_RETURN(const Answer rest, Ask(prompt, "b"));
    Add({.name = "serve cut at 60 %, work of both",
         .value = 100 * (Work(0, read) + Work(rest.cached, n)) / Work(0, n),
         .unit = "%",
         .ceiling = 105,
         .of = "105 % of one reading, at most"});
    return Status::Ok();
  }

  Status Restart() {
    service_.reset();  // once all is written
    DropCaches(options_.folder);
    const double rate = ReadRate(options_.folder);
    MM01_RETURN_IF_ERROR(StartService());
    DropCaches(options_.folder);
    MM01_ASSIGN_OR_RETURN(const Answer answer, Ask(WithQuestion(document_, 2), "a"));
    Check(answer.tokens == second_tokens_, "the answer differs after a restart");
    Check(answer.cached >= options_.document_tokens / 64 * 64 - 64, "the files were not used");
    const double reading = text_bytes_ / rate;
    Add({.name = "serve restart",
         .value = 100 * answer.seconds / first_,
         .unit = "%",
         .ceiling = 10,
         .of = "10 % of the first, at most"});
    Add({.name = "serve restart, seconds",
         .value = answer.seconds,
         .unit = "s",
         .ceiling = reading,
         .of = fmt::format("{:.1f} MB read at {:.2f} GB/s", text_bytes_ * 1e-6, rate * 1e-9)});
    return Status::Ok();
  }

  Result<std::unique_ptr<Engine>> StreamsEngine() const {
    const infer::EngineOptions engine{.device = options_.device,
                                      .num_threads = options_.num_threads,
                                      .context_tokens = 512 + options_.stream_tokens,
                                      .num_sequences = options_.num_streams,
                                      .prefill_rows = options_.step_rows};
    if (!options_.text01_streams) return Engine::Load(options_.model, engine);
    // What one GPU of 80 GB holds in bf16.
    std::vector<LayerKind> layers(4, LayerKind::kLightning);
    layers.back() = LayerKind::kSoftmax;
    return Engine::Random(Text01Layers(std::move(layers), 200064), {DType::kBF16, 0}, engine);
  }

  // Tokens a second of steps of the whole batch, with logits, and without anything else.
  double EngineRate(Engine& engine) const {
    constexpr int kWarmUp = 3;
    const int64_t streams = options_.num_streams;
    TextState& state = engine.state();
    TextBatch batch{.ids = Tokens(5, streams)};
    for (int64_t i = 0; i < streams; ++i) {
      const int32_t slot = *state.Open();
      const Status room = state.Reserve(slot, options_.stream_tokens + kWarmUp);
      Check(room.ok(), room.message());
      batch.sequences.push_back({.slot = slot, .num_rows = 1});
    }
    Queue& queue = engine.queue();
    double seconds = 0;
    {
      Scratch scratch(queue);
      const Tensor hidden =
          scratch.GetRows(engine.weights().activations(), streams, engine.config().hidden_size);
      const Tensor logits = scratch.GetRows(DType::kF32, streams, engine.config().vocab_size);
      const auto step = [&] {
        Forward(engine.model(), batch, hidden);
        Logits(engine.model(), hidden, logits);
      };
      for (int i = 0; i < kWarmUp; ++i) step();
      queue.Wait();
      const double start = Now();
      for (int64_t i = 0; i < options_.stream_tokens; ++i) step();
      queue.Wait();
      seconds = Now() - start;
    }
    for (const auto& s : batch.sequences) state.Close(s.slot);
    return static_cast<double>(streams * options_.stream_tokens) / seconds;
  }

  Status Streams() {
    MM01_ASSIGN_OR_RETURN(auto engine, StreamsEngine());
    config_ = engine->config();
    const double rate = EngineRate(*engine);
    MM01_ASSIGN_OR_RETURN(service_,
                          Service::Start(std::move(engine), {.max_queue = options_.num_streams,
                                                             .step_rows = options_.step_rows,
                                                             .snapshot_bytes = 0}));
    MM01_RETURN_IF_ERROR(Ask(Tokens(90, 200), "warm").status());
    for (const bool greedy : {true, false}) {
      std::vector<std::shared_ptr<Probe>> probes;
      for (int64_t i = 0; i < options_.num_streams; ++i) {
        const auto number = static_cast<uint64_t>(i);
        Request request = Of(Tokens(1000 + number, 4), "", options_.stream_tokens);
        if (!greedy) {
          request.generate.sampling = {
              .temperature = 0.8, .top_k = 50, .top_p = 0.95, .seed = number};
        }
        probes.push_back(std::make_shared<Probe>());
        MM01_RETURN_IF_ERROR(service_->Submit(std::move(request), probes.back()).status());
      }
      double begin = 0, end = 1e300;  // while all write
      int64_t written = 0;
      for (const auto& probe : probes) {
        MM01_RETURN_IF_ERROR(probe->Wait());
        begin = std::max(begin, probe->first_token());
        end = std::min(end, probe->last_token());
      }
      for (const auto& probe : probes) written += std::ssize(probe->Gaps(begin + 1e-9, end - 1e-9));
      Add({.name = fmt::format("serve {} streams, {}", options_.num_streams,
                               greedy ? "greedy" : "top-k 50, top-p 0.95"),
           .value = static_cast<double>(written) / (end - begin),
           .unit = "tokens/s",
           .ceiling = rate,
           .of = "the engine's own steps with logits"});
    }
    service_.reset();
    return Status::Ok();
  }

  const ServeBenchOptions& options_;
  const std::function<void(const BenchLine&)>& on_line_;
  std::vector<BenchLine> lines_;
  TextConfig config_;
  std::unique_ptr<Service> service_;
  std::vector<int32_t> document_, second_tokens_;
  double first_ = 0, text_bytes_ = 0;
};

}  // namespace

Result<std::vector<BenchLine>> BenchServe(const ServeBenchOptions& options,
                                          const std::function<void(const BenchLine&)>& on_line) {
  Check(options.document_tokens >= 1024 && options.num_streams >= 0, "a bench of nothing");
  return ServeBench(options, on_line).Run();
}

}  // namespace mm01::eval
