#include "eval/needle.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "infer/generate.h"
#include "infer/session.h"
#include "train/data/words.h"

namespace mm01::eval {
namespace {

using train::Draw;

constexpr double kFirstDepth = 0.05, kLastDepth = 0.95;
constexpr int64_t kAnswerTokens = 16;

double Depth(int64_t trial, int64_t trials) {
  if (trials == 1) return 0.5;
  return kFirstDepth +
         (kLastDepth - kFirstDepth) * static_cast<double>(trial) / static_cast<double>(trials - 1);
}

// Tokens begin .. begin + count - 1 of an endless repetition.
void AppendCyclic(std::span<const int32_t> from, int64_t begin, int64_t count,
                  std::vector<int32_t>* to) {
  const auto n = std::ssize(from);
  for (int64_t i = 0; i < count; ++i) to->push_back(from[static_cast<size_t>((begin + i) % n)]);
}

// What the model answers behind the document that the session has read.
Result<NeedleTrial> Ask(infer::Session& session, const NeedleQuestion& question) {
  MM01_RETURN_IF_ERROR(session.Read(question.ids));
  MM01_ASSIGN_OR_RETURN(
      const infer::GenerateResult written,
      infer::Generate(session, {.sampling = {.temperature = 0}, .max_tokens = kAnswerTokens}));
  NeedleTrial trial{.depth = question.depth, .key = question.key, .value = question.value};
  trial.answer = written.text.substr(0, static_cast<size_t>(train::kMagicDigits));
  trial.hit = trial.answer == trial.value;
  return trial;
}

// Every question behind the same text: back to the last border, and what lies behind it again.
Status AskAll(infer::Engine& engine, const NeedleDocument& document,
              const infer::PrefillProgress& progress, std::vector<NeedleTrial>* trials) {
  MM01_ASSIGN_OR_RETURN(infer::Session session, infer::Session::Open(engine));
  MM01_RETURN_IF_ERROR(session.Read(document.ids, progress));
  const infer::Session::Mark mark = session.MarkBorder();
  const auto rest = std::span(document.ids).subspan(static_cast<size_t>(mark.length));
  for (size_t q = 0; q < document.questions.size(); ++q) {
    if (q > 0) {
      session.Rewind(mark);
      MM01_RETURN_IF_ERROR(session.Read(rest));
    }
    MM01_ASSIGN_OR_RETURN(NeedleTrial trial, Ask(session, document.questions[q]));
    trials->push_back(std::move(trial));
  }
  return Status::Ok();
}

Status CheckOptions(const NeedleOptions& options) {
  if (options.questions > options.keys) {
    return Status::Invalid(fmt::format("--questions is {}, wanted at most --keys, {}",
                                       options.questions, options.keys));
  }
  if (options.trials % options.questions != 0) {
    return Status::Invalid(fmt::format("--trials is {}, wanted a multiple of --questions, {}",
                                       options.trials, options.questions));
  }
  return Status::Ok();
}

// Where each needle stands in the body: those that are asked for at their depths.
std::vector<std::pair<int64_t, size_t>> Cuts(const NeedleDocument& document, size_t num_needles,
                                             int64_t body, Draw& draw) {
  std::vector<std::pair<int64_t, size_t>> cuts;
  for (size_t i = 0; i < num_needles; ++i) {
    const bool asked = i < document.questions.size();
    cuts.emplace_back(asked ? std::llround(document.questions[i].depth * static_cast<double>(body))
                            : draw.Between(0, body),
                      i);
  }
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

}  // namespace

Result<NeedleDocument> MakeNeedleDocument(const Tokenizer& tokenizer,
                                          std::span<const int32_t> haystack,
                                          const std::vector<std::string>& words,
                                          const NeedleOptions& options, int64_t document) {
  if (haystack.empty()) return Status::Invalid("the haystack is empty, wanted some text");
  MM01_RETURN_IF_ERROR(CheckOptions(options));
  Draw draw(options.seed, static_cast<uint64_t>(document));
  const auto encode = [&](const std::string& text) {
    return tokenizer.Encode(text, Tokenizer::Special::kAsText);
  };
  NeedleDocument made;
  std::vector<std::vector<int32_t>> needles;
  int64_t body = options.length, longest = 0;
  for (const std::string& key : draw.Keys(words, options.keys)) {
    const std::string value = draw.Digits(train::kMagicDigits);
    MM01_ASSIGN_OR_RETURN(auto ids, encode(train::NeedleSentence(key, value)));
    body -= std::ssize(ids);
    const auto q = std::ssize(needles);
    needles.push_back(std::move(ids));
    if (q >= options.questions) continue;
    const int64_t documents = options.trials / options.questions;
    NeedleQuestion question{
        .depth = Depth(q * documents + document, options.trials), .key = key, .value = value};
    MM01_ASSIGN_OR_RETURN(question.ids, encode(train::NeedleQuestion(key)));
    longest = std::max(longest, std::ssize(question.ids));
    made.questions.push_back(std::move(question));
  }
  body -= longest;
  if (body < 0) {
    return Status::Invalid(
        fmt::format("--length is {}, wanted at least {}, the tokens of {} "
                    "needles and a question",
                    options.length, options.length - body, options.keys));
  }

  const auto cuts = Cuts(made, needles.size(), body, draw);
  const int64_t begin = draw.Below(std::ssize(haystack));
  int64_t done = 0;
  for (const auto& [cut, i] : cuts) {
    AppendCyclic(haystack, begin + done, cut - done, &made.ids);
    made.ids.insert(made.ids.end(), needles[i].begin(), needles[i].end());
    done = cut;
  }
  AppendCyclic(haystack, begin + done, body - done, &made.ids);
  return made;
}

int64_t NeedleContext(int64_t length) {
  return length + kAnswerTokens;
}

Result<NeedleReport> MeasureNeedles(infer::Engine& engine, std::span<const int32_t> haystack,
                                    const std::vector<std::string>& words,
                                    const NeedleOptions& options,
                                    const std::function<bool(int64_t, int64_t)>& progress) {
  Check(engine.tokenizer() != nullptr, "needles are text");
  MM01_RETURN_IF_ERROR(CheckOptions(options));
  NeedleReport report;
  const int64_t documents = options.trials / options.questions, all = documents * options.length;
  for (int64_t d = 0; d < documents; ++d) {
    MM01_ASSIGN_OR_RETURN(const NeedleDocument document,
                          MakeNeedleDocument(*engine.tokenizer(), haystack, words, options, d));
    MM01_RETURN_IF_ERROR(AskAll(
        engine, document,
        [&](int64_t done, int64_t) {
          return !progress || progress(d * options.length + done, all);
        },
        &report.trials));
  }
  const auto hits = std::count_if(report.trials.begin(), report.trials.end(),
                                  [](const NeedleTrial& t) { return t.hit; });
  report.accuracy = static_cast<double>(hits) / static_cast<double>(options.trials);
  return report;
}

}  // namespace mm01::eval
