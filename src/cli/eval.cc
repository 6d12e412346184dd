// mm01 eval: what a model can do.
#include <fmt/core.h>

#include <algorithm>
#include <memory>

#include "base/format.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/progress.h"
#include "cli/prompt.h"
#include "eval/needle.h"
#include "train/data/words.h"

namespace mm01::cli {
namespace {

struct EvalFlags {
  std::string task;
  ModelFlags model;
  eval::NeedleOptions needle;
  int64_t seed = 0;
  std::optional<std::string> text, words;
  bool json = false;
};

constexpr const char* kText = "data/the-iron-heel.txt";
constexpr const char* kWords = "data/needle_keys.json";

Json ToJson(const eval::NeedleReport& report, const EvalFlags& flags, double seconds) {
  Json trials = Json::array();
  for (const eval::NeedleTrial& t : report.trials) {
    trials.push_back({{"depth", t.depth},
                      {"key", t.key},
                      {"value", t.value},
                      {"answer", t.answer},
                      {"hit", t.hit}});
  }
  return {{"accuracy", report.accuracy},
          {"length", flags.needle.length},
          {"trials", flags.needle.trials},
          {"keys", flags.needle.keys},
          {"questions", flags.needle.questions},
          {"seed", flags.needle.seed},
          {"seconds", seconds},
          {"results", trials}};
}

std::string Table(const eval::NeedleReport& report) {
  std::string text = fmt::format("{:>6}  {:<32}{:>9}{:>9}\n", "depth", "key", "number", "answer");
  for (const eval::NeedleTrial& t : report.trials) {
    // What a model writes may be anything; a table has one line a trial.
    std::string answer = t.answer;
    for (char& c : answer) {
      if (c < ' ' || c > '~') c = '?';
    }
    text += fmt::format("{:6.3f}  {:<32}{:>9}{:>9}{}\n", t.depth, t.key, t.value, answer,
                        t.hit ? "" : "  miss");
  }
  const auto hits = std::count_if(report.trials.begin(), report.trials.end(),
                                  [](const eval::NeedleTrial& t) { return t.hit; });
  return text + fmt::format("accuracy {:.3f}: {} of {} found\n", report.accuracy, hits,
                            report.trials.size());
}

Result<int> RunEval(EvalFlags flags) {
  if (flags.task != "needle") {
    return Status::Invalid(fmt::format("TASK is '{}', wanted needle", flags.task));
  }
  const Notes notes(flags.model.quiet);
  flags.needle.seed = static_cast<uint64_t>(flags.seed);
  MM01_ASSIGN_OR_RETURN(const auto words, train::WordList::Load(flags.words.value_or(kWords)));
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadText(flags.text.value_or(kText)));
  MM01_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(flags.model.model));
  MM01_ASSIGN_OR_RETURN(const auto haystack, tokenizer.Encode(text, Tokenizer::Special::kAsText));
  MM01_ASSIGN_OR_RETURN(
      const LoadedModel model,
      LoadModel(flags.model, {.context_tokens = eval::NeedleContext(flags.needle.length)}, notes));
  const InterruptScope interrupt;
  Progress progress(notes, "reading", Progress::Unit::kTokens);
  MM01_ASSIGN_OR_RETURN(const eval::NeedleReport report,
                        eval::MeasureNeedles(*model.engine, haystack, words.held_out, flags.needle,
                                             [&](int64_t done, int64_t all) {
                                               progress.Update(done, all);
                                               return !InterruptScope::requested();
                                             }));
  const double seconds = progress.seconds();
  Print(flags.json ? JsonText(ToJson(report, flags, seconds), 2) + "\n" : Table(report));
  notes.WriteFaint(fmt::format("{} trials in texts of {} tokens, {}\nmemory: {}\n",
                               flags.needle.trials, FormatCount(flags.needle.length),
                               FormatSeconds(seconds), MemoryText(*model.engine)));
  return kExitOk;
}

}  // namespace

void AddEval(CommandLine& line) {
  auto flags = std::make_shared<EvalFlags>();
  Command& command = line.Add(
      {"eval",
       "Measures what a model can do: eval needle MODEL.",
       "needle: finding a magic number in a long text. Sentences with keys that training never saw "
       "and seven-digit numbers are hidden in the text; the model is asked for one of them and "
       "writes greedily. A hit is all seven digits. The depth of the sentence is spread evenly "
       "over the trials, from 0.05 to 0.95 of the text.",
       {"mm01 eval needle models/nano --length 2048 --trials 100 --seed 1 --json"}});
  command.Required("TASK", &flags->task, "needle");
  AddModelArgument(command, &flags->model);
  command.Whole("--length", "N", &flags->needle.length, kAtLeastOne,
                "tokens that the model reads in a trial");
  command.Whole("--trials", "N", &flags->needle.trials, {1, 1'000'000}, "how often");
  command.Whole("--keys", "N", &flags->needle.keys, {1, 50}, "sentences in the text");
  command.Whole("--questions", "N", &flags->needle.questions, {1, 50},
                "how many of them are asked for in one text, which is read once for all: each is a "
                "trial, and long texts take less time");
  command.Whole("--seed", "N", &flags->seed, kAtLeastZero, "of keys, numbers and places");
  command.Text("--text", "FILE", &flags->text,
               fmt::format("the text that they are hidden in, over again where it is too short "
                           "(default: {})",
                           kText));
  command.Text(
      "--words", "FILE", &flags->words,
      fmt::format("JSON array of words; keys are made of every tenth (default: {})", kWords));
  command.Switch("--json", &flags->json, "one JSON object in place of the table");
  AddModelFlags(command, &flags->model, "--length and the answer");
  command.Action([flags] {
    const Result<int> code = RunEval(*flags);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
