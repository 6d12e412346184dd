#include "eval/needle.h"

#include <fmt/format.h>

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

Result<NeedleTrial> RunTrial(infer::Engine& engine, const NeedlePrompt& prompt,
                             const infer::PrefillProgress& progress) {
  MM01_ASSIGN_OR_RETURN(infer::Session session, infer::Session::Open(engine));
  MM01_RETURN_IF_ERROR(session.Read(prompt.ids, progress));
  MM01_ASSIGN_OR_RETURN(
      const infer::GenerateResult written,
      infer::Generate(session, {.sampling = {.temperature = 0}, .max_tokens = kAnswerTokens}));
  NeedleTrial trial{.depth = prompt.depth, .key = prompt.key, .value = prompt.value};
  trial.answer = written.text.substr(0, static_cast<size_t>(train::kMagicDigits));
  trial.hit = trial.answer == trial.value;
  return trial;
}

}  // namespace

Result<NeedlePrompt> MakeNeedlePrompt(const Tokenizer& tokenizer, std::span<const int32_t> haystack,
                                      const std::vector<std::string>& words,
                                      const NeedleOptions& options, int64_t trial) {
  if (haystack.empty()) return Status::Invalid("the haystack is empty, wanted some text");
  Draw draw(options.seed, static_cast<uint64_t>(trial));
  const std::vector<std::string> keys = draw.Keys(words, options.keys);
  NeedlePrompt prompt{.depth = Depth(trial, options.trials), .key = keys[0]};
  const auto encode = [&](const std::string& text) {
    return tokenizer.Encode(text, Tokenizer::Special::kAsText);
  };
  std::vector<std::vector<int32_t>> needles;
  int64_t body = options.length;
  for (const std::string& key : keys) {
    const std::string value = draw.Digits(train::kMagicDigits);
    if (needles.empty()) prompt.value = value;
    MM01_ASSIGN_OR_RETURN(auto ids, encode(train::NeedleSentence(key, value)));
    body -= std::ssize(ids);
    needles.push_back(std::move(ids));
  }
  MM01_ASSIGN_OR_RETURN(const auto question, encode(train::NeedleQuestion(prompt.key)));
  body -= std::ssize(question);
  if (body < 0) {
    return Status::Invalid(
        fmt::format("--length is {}, wanted at least {}, the tokens of {} "
                    "needles and a question",
                    options.length, options.length - body, options.keys));
  }

  std::vector<std::pair<int64_t, size_t>> cuts;  // where each needle stands in the body
  for (size_t i = 0; i < needles.size(); ++i) {
    const auto asked = static_cast<int64_t>(std::llround(prompt.depth * static_cast<double>(body)));
    cuts.emplace_back(i == 0 ? asked : draw.Between(0, body), i);
  }
  std::sort(cuts.begin(), cuts.end());
  const int64_t begin = draw.Below(std::ssize(haystack));
  int64_t done = 0;
  for (const auto& [cut, i] : cuts) {
    AppendCyclic(haystack, begin + done, cut - done, &prompt.ids);
    prompt.ids.insert(prompt.ids.end(), needles[i].begin(), needles[i].end());
    done = cut;
  }
  AppendCyclic(haystack, begin + done, body - done, &prompt.ids);
  prompt.ids.insert(prompt.ids.end(), question.begin(), question.end());
  return prompt;
}

int64_t NeedleContext(int64_t length) {
  return length + kAnswerTokens;
}

Result<NeedleReport> MeasureNeedles(infer::Engine& engine, std::span<const int32_t> haystack,
                                    const std::vector<std::string>& words,
                                    const NeedleOptions& options,
                                    const std::function<bool(int64_t, int64_t)>& progress) {
  Check(engine.tokenizer() != nullptr, "needles are text");
  NeedleReport report;
  const int64_t all = options.trials * options.length;
  int64_t hits = 0;
  for (int64_t t = 0; t < options.trials; ++t) {
    MM01_ASSIGN_OR_RETURN(const NeedlePrompt prompt,
                          MakeNeedlePrompt(*engine.tokenizer(), haystack, words, options, t));
    MM01_ASSIGN_OR_RETURN(NeedleTrial trial, RunTrial(engine, prompt, [&](int64_t done, int64_t) {
                            return !progress || progress(t * options.length + done, all);
                          }));
    hits += trial.hit;
    report.trials.push_back(std::move(trial));
  }
  report.accuracy = static_cast<double>(hits) / static_cast<double>(options.trials);
  return report;
}

}  // namespace mm01::eval
