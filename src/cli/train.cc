// mm01 train: makes a model after a recipe.
#include <fmt/core.h>

#include <chrono>
#include <cmath>
#include <exception>
#include <filesystem>
#include <memory>
#include <utility>

#include "base/format.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/train_screen.h"
#include "comm/thread_group.h"
#include "eval/needle.h"
#include "infer/generate.h"
#include "infer/machine.h"
#include "io/file.h"
#include "planner/flops.h"
#include "train/checkpoint.h"
#include "train/loop.h"

namespace mm01::cli {
namespace {

struct TrainFlags {
  std::string recipe;
  std::optional<std::string> out;
  std::string device = "auto";
  std::optional<int64_t> threads, stop_after;
  int64_t ranks = 1;
  bool resume = false, dry_run = false, overfit = false, quiet = false;
};

// Ends the other ranks when one cannot go on.
class RankStopped : public std::exception {
 public:
  explicit RankStopped(Status status) : status_(std::move(status)) {}
  const Status& status() const { return status_; }
  const char* what() const noexcept override { return status_.message().c_str(); }

 private:
  Status status_;
};

double UnixSeconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

class TrainRun {
 public:
  explicit TrainRun(const TrainFlags& flags) : flags_(flags), notes_(flags.quiet) {}

  Result<int> Run() {
    MM01_ASSIGN_OR_RETURN(recipe_, train::LoadRecipe(flags_.recipe));
    MM01_ASSIGN_OR_RETURN(device_, ChosenDevice(flags_.device));
    threads_ = flags_.threads ? static_cast<int>(*flags_.threads) : infer::AvailableCores();
    MM01_RETURN_IF_ERROR(CheckMemory());
    MM01_ASSIGN_OR_RETURN(data_, train::TrainData::Load(recipe_));
    if (flags_.dry_run) return DryRun();
    run_ = flags_.out.value_or("runs/" + recipe_.name);
    MM01_RETURN_IF_ERROR(OpenRun());
    return Train();
  }

 private:
  // Values, gradients and two moments, float32; activations come on top.
  Status CheckMemory() const {
    const double needed =
        static_cast<double>(CountParameters(recipe_.config).total) * (12.0 * ranks() + 8.0);
    const auto available = static_cast<double>(infer::AvailableMemoryBytes(device_));
    if (needed <= available) return Status::Ok();
    return Status::TooLarge(
        fmt::format("{}: parameters, gradients and optimizer take {}, {} are available",
                    flags_.recipe, FormatBytes(needed), FormatBytes(available)));
  }

  double ranks() const { return static_cast<double>(flags_.ranks); }
  std::string checkpoints() const { return run_ + "/checkpoints"; }

  Status OpenRun() const {
    std::error_code error;
    std::filesystem::create_directories(run_, error);
    if (error) return Status::Io(fmt::format("{}: cannot create: {}", run_, error.message()));
    if (!flags_.resume && !train::ListCheckpoints(checkpoints()).empty()) {
      return Status::Invalid(fmt::format(
          "{}: has checkpoints already, wanted --resume to go on, or --out with another folder",
          run_));
    }
    return WriteFileAtomically(run_ + "/recipe.toml", recipe_.text);
  }

  train::TrainerPlace Place(Queue& queue, Group& group) const {
    return {.queue = queue,
            .group = group,
            .make_model = TrainerModel::Create,
            .checkpoints = checkpoints(),
            .overfit = flags_.overfit};
  }

  int ThreadsOf(int rank) const {
    const auto n = static_cast<int>(flags_.ranks);
    return std::max(1, threads_ / n + (rank < threads_ % n ? 1 : 0));
  }

  Result<int> Train() {
    const InterruptScope interrupt;
    auto end = train::LoopEnd::kDone;
    try {
      ThreadRanks(static_cast<int>(flags_.ranks)).Run([&](int rank, Group& group) {
        const Result<train::LoopEnd> mine = TrainRank(rank, group);
        if (!mine.ok()) throw RankStopped(mine.status());
        if (rank == 0) end = *mine;
      });
    } catch (const RankStopped& stopped) {
      return stopped.status();
    }
    screen_.Clear();
    if (end == train::LoopEnd::kStopped) {
      notes_.Write(fmt::format("stopped and saved; to go on: mm01 train {} --out {} --resume\n",
                               flags_.recipe, run_));
      return InterruptScope::requested() ? kExitInterrupted : kExitOk;
    }
    Print(
        fmt::format("{0}: trained; try: mm01 generate {0}/model \"...\", mm01 report {0}\n", run_));
    return kExitOk;
  }

  Result<train::LoopEnd> TrainRank(int rank, Group& group) {
    Queue queue(ThreadsOf(rank), device_);
    MM01_ASSIGN_OR_RETURN(const auto trainer,
                          train::Trainer::Create(recipe_, data_, Place(queue, group)));
    if (flags_.resume) {
      std::vector<std::string> refused;
      MM01_ASSIGN_OR_RETURN(const bool found, trainer->Resume(&refused));
      if (rank == 0) {
        for (const std::string& note : refused) notes_.Write("passed over " + note + "\n");
        notes_.Write(found ? fmt::format("going on from step {}\n", trainer->step())
                           : std::string("no checkpoint is there: from the start\n"));
      }
    }
    if (rank == 0) Announce(*trainer);
    const train::LoopHooks hooks{
        .on_step = [&](const train::StepMetrics& m) { return OnStep(m); },
        .on_note = [&](const std::string& note) { screen_.Note(note); },
        .sample = [&](const std::string& folder) { return Sample(folder); },
        .memory_bytes = [&] { return MemoryInUse(*trainer); },
        .unix_seconds = UnixSeconds};
    return train::RunLoop(recipe_, *trainer, group, {.run = run_, .overfit = flags_.overfit},
                          hooks);
  }

  int64_t MemoryInUse(const train::Trainer& trainer) const {
    if (device_ == Device::kCpu) return infer::PeakResidentBytes();
    int64_t bytes = trainer.optimizer_bytes();
    for (const TrainMemoryLine& line : trainer.model().memory()) {
      if (!line.recomputed) bytes += line.bytes;
    }
    return bytes;
  }

  bool OnStep(const train::StepMetrics& m) {
    screen_.Step(m);
    const bool enough = flags_.stop_after && m.report.step + 1 >= *flags_.stop_after;
    return !enough && !InterruptScope::requested();
  }

  // What will happen, before it does.
  void Announce(const train::Trainer& trainer) const {
    const ParameterCount count = CountParameters(recipe_.config);
    std::string text = fmt::format(
        "{}: {} parameters, {} activated a token; {} steps, {} tokens in {} stage{}, {} rank{}\n",
        recipe_.name, FormatCount(count.total), FormatCount(count.activated),
        FormatCount(recipe_.total_steps()), FormatCount(recipe_.total_tokens()),
        recipe_.stages.size(), recipe_.stages.size() == 1 ? "" : "s", flags_.ranks,
        flags_.ranks == 1 ? "" : "s");
    text += MemoryTable(trainer);
    text += fmt::format("a model that knows nothing has a loss of ln {} = {:.3f}\n",
                        recipe_.config.vocab_size,
                        std::log(static_cast<double>(recipe_.config.vocab_size)));
    notes_.WriteFaint(text);
  }

  static std::string MemoryTable(const train::Trainer& trainer) {
    std::string text;
    int64_t total = trainer.optimizer_bytes();
    const auto row = [&](const std::string& what, int64_t bytes, const char* more) {
      text +=
          fmt::format("  {:<44}{:>12}{}\n", what, FormatBytes(static_cast<double>(bytes)), more);
    };
    for (const TrainMemoryLine& line : trainer.model().memory()) {
      row(line.what, line.bytes, line.recomputed ? "  computed again" : "");
      if (!line.recomputed) total += line.bytes;
    }
    row("optimizer: two moments", trainer.optimizer_bytes(), "");
    row("in all", total, "");
    return text;
  }

  // Shape, stages, memory, and the time that follows from one timed pass.
  Result<int> DryRun() {
    Queue queue(threads_, device_);
    SingleGroup group;
    MM01_ASSIGN_OR_RETURN(const auto trainer,
                          train::Trainer::Create(recipe_, data_, Place(queue, group)));
    std::string text = fmt::format("{}: {}\n", flags_.recipe, recipe_.name);
    const ParameterCount count = CountParameters(recipe_.config);
    text += fmt::format("parameters {}, activated {} a token\n", FormatCount(count.total),
                        FormatCount(count.activated));
    text += fmt::format("memory of a rank:\n{}", MemoryTable(*trainer));
    for (size_t i = 0; i < recipe_.stages.size(); ++i) {
      const train::StageSpec& s = recipe_.stages[i];
      text += fmt::format("stage {}: {} steps of {} tokens in rows of {}", i, FormatCount(s.steps),
                          FormatCount(s.batch.front().tokens), FormatCount(s.length));
      if (s.batch.size() > 1) {
        text += fmt::format(", rising to {}", FormatCount(s.batch.back().tokens));
      }
      for (const train::Share& share : s.mix) {
        text += fmt::format(", {} {:.0f} %", share.name, 100 * share.begin);
        if (share.end != share.begin) text += fmt::format(" to {:.0f} %", 100 * share.end);
      }
      text += "\n";
    }
    MM01_ASSIGN_OR_RETURN(const train::StepReport warm, trainer->Step());
    const train::StepReport timed = trainer->done() ? warm : trainer->Step().value();
    const double speed = static_cast<double>(timed.tokens) / timed.seconds * ranks();
    text += fmt::format(
        "{} tokens in all; one step took {:.0f} ms: {:.0f} tokens/s on {} rank{}, "
        "about {}\n",
        FormatCount(recipe_.total_tokens()), 1e3 * timed.seconds, speed, flags_.ranks,
        flags_.ranks == 1 ? "" : "s, if each is as fast",
        FormatSeconds(static_cast<double>(recipe_.total_tokens()) / speed));
    text += fmt::format("loss of the first step {:.3f}; a model that knows nothing: {:.3f}\n",
                        warm.loss, std::log(static_cast<double>(recipe_.config.vocab_size)));
    Print(text);
    return kExitOk;
  }

  Result<train::SampleReport> Sample(const std::string& folder) {
    const train::SamplingSpec& spec = recipe_.sampling;
    int64_t context = 4096;
    for (const int64_t n : spec.needle_lengths) {
      context = std::max(context, eval::NeedleContext(n));
    }
    MM01_ASSIGN_OR_RETURN(
        const auto engine,
        infer::Engine::Load(
            folder, {.device = device_, .num_threads = threads_, .context_tokens = context}));
    train::SampleReport report;
    if (spec.tokens > 0 && !spec.prompt.empty()) {
      MM01_ASSIGN_OR_RETURN(report.text, Write(*engine));
    }
    if (spec.needle_lengths.empty()) return report;
    MM01_ASSIGN_OR_RETURN(const auto haystack, Haystack(context));
    for (const int64_t length : spec.needle_lengths) {
      MM01_ASSIGN_OR_RETURN(const eval::NeedleReport found,
                            eval::MeasureNeedles(*engine, haystack, data_->words.held_out,
                                                 {.length = length, .trials = spec.needle_trials}));
      report.needles.emplace_back(length, found.accuracy);
    }
    return report;
  }

  Result<std::string> Write(infer::Engine& engine) const {
    MM01_ASSIGN_OR_RETURN(infer::Session session, infer::Session::Open(engine));
    MM01_ASSIGN_OR_RETURN(const auto prompt, data_->tokenizer->Encode(recipe_.sampling.prompt,
                                                                      Tokenizer::Special::kAsText));
    MM01_RETURN_IF_ERROR(session.Read(prompt));
    MM01_ASSIGN_OR_RETURN(
        const infer::GenerateResult written,
        infer::Generate(session, {.sampling = {.temperature = 0.7, .top_p = 0.95, .seed = 1},
                                  .max_tokens = recipe_.sampling.tokens}));
    return recipe_.sampling.prompt + written.text;
  }

  // The first tokens of the validation text, or of the first source.
  Result<std::vector<int32_t>> Haystack(int64_t count) const {
    if (recipe_.words.empty() || recipe_.sources.empty()) {
      return Status::Invalid("sample.needle_lengths needs words and a source, wanted both");
    }
    const std::string& name =
        recipe_.validation.source.empty() ? recipe_.sources[0].name : recipe_.validation.source;
    const train::DataSet& set = data_->sets.at(name);
    train::TokenSpan span;
    for (int64_t d = 0; d < set.num_documents() && std::ssize(span.ids) < count; ++d) {
      MM01_RETURN_IF_ERROR(set.Read(d, 0, set.Length(d), &span));
    }
    return std::move(span.ids);
  }

  const TrainFlags& flags_;
  Notes notes_;
  TrainScreen screen_{notes_};
  train::Recipe recipe_;
  std::shared_ptr<const train::TrainData> data_;
  Device device_ = Device::kCpu;
  int threads_ = 1;
  std::string run_;
};

}  // namespace

void AddTrain(CommandLine& line) {
  auto flags = std::make_shared<TrainFlags>();
  Command& command = line.Add(
      {"train",
       "Makes a model after a recipe.",
       "Prints one line a step, and writes logs, checkpoints and the model to the folder of the "
       "run. Ctrl-C or SIGTERM stops after the step and saves; --resume goes on as if nothing had "
       "been. docs/training.md tells what recipes hold and what healthy numbers are.",
       {"mm01 train recipes/tiny-cpu.toml --dry-run", "mm01 train recipes/tiny-cpu.toml",
        "mm01 train recipes/tiny-cpu.toml --resume --ranks 2"}});
  command.Required("RECIPE", &flags->recipe, "TOML file");
  command.Text("--out", "RUN", &flags->out, "folder of the run (default: runs/NAME)");
  command.Switch("--resume", &flags->resume, "go on from the newest whole checkpoint of the run");
  command.Switch("--dry-run", &flags->dry_run,
                 "print shape, memory, stages and the expected time, after two steps that are "
                 "thrown away");
  command.Switch("--overfit", &flags->overfit,
                 "learn the batch of step 0 over and over: its loss must go to nothing");
  command.Whole("--stop-after", "N", &flags->stop_after, kAtLeastOne,
                "stop and save after step N, as Ctrl-C would");
  command.Whole("--ranks", "N", &flags->ranks, {1, 256},
                "split every batch over N ranks, threads of this process");
  AddDeviceFlag(command, &flags->device);
  AddThreadsFlag(command, &flags->threads);
  AddQuietFlag(command, &flags->quiet);
  command.Action([flags] {
    const Result<int> code = TrainRun(*flags).Run();
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
