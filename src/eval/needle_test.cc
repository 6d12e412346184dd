#include "eval/needle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>

#include "infer/generate.h"
#include "infer/session.h"
#include "testing/tiny_model.h"
#include "train/data/words.h"

namespace mm01::eval {
namespace {

class Needles : public testing::Test {
 protected:
  Needles() {
    WriteTinyTokenizer(folder_.path());
    for (int i = 0; i < 20; ++i) words_.push_back("word" + std::to_string(i));
  }

  // Of a random model, for texts of `length` tokens.
  std::unique_ptr<infer::Engine> TinyEngine(int64_t length) {
    TextConfig config = TinyConfig();
    config.vocab_size = 258;
    config.eos_ids = {257};
    WriteTinyModel(folder_.path(), config);
    return infer::Engine::Load(folder_.path(),
                               {.num_threads = 1, .context_tokens = NeedleContext(length)})
        .value();
  }

  TempFolder folder_;
  std::vector<std::string> words_;
};

TEST_F(Needles, ThePromptHasTheLengthTheDepthAndAllKeys) {
  const Tokenizer tokenizer = Tokenizer::Load(folder_.path()).value();
  const std::vector<int32_t> hay(100, '.');  // shorter than the text that is wanted
  const NeedleOptions options{.length = 2000, .trials = 10, .keys = 4, .seed = 3};
  for (int64_t t = 0; t < 10; ++t) {
    const NeedleDocument document = MakeNeedleDocument(tokenizer, hay, words_, options, t).value();
    ASSERT_EQ(document.questions.size(), 1u);
    const NeedleQuestion& prompt = document.questions[0];
    EXPECT_EQ(document.ids.size() + prompt.ids.size(), 2000u);
    EXPECT_NEAR(prompt.depth, 0.05 + 0.1 * static_cast<double>(t), 1e-12);
    const std::string text = tokenizer.Decode(document.ids) + tokenizer.Decode(prompt.ids);
    EXPECT_EQ(prompt.value.size(), 7u);
    const std::string needle = train::NeedleSentence(prompt.key, prompt.value);
    const size_t at = text.find(needle);
    ASSERT_NE(at, std::string::npos) << text;
    const std::string before = text.substr(0, at);
    const auto dots = std::count(before.begin(), before.end(), '.');
    const auto all = std::count(text.begin(), text.end(), '.');
    EXPECT_NEAR(static_cast<double>(dots), prompt.depth * static_cast<double>(all), 5);
    EXPECT_TRUE(text.ends_with(train::NeedleQuestion(prompt.key)));
    int needles = 0;
    for (size_t i = text.find("\nThe special"); i != std::string::npos;
         i = text.find("\nThe special", i + 1)) {
      ++needles;
    }
    EXPECT_EQ(needles, 4);
  }
}

TEST_F(Needles, ALengthThatHoldsNoNeedlesIsRefused) {
  const Tokenizer tokenizer = Tokenizer::Load(folder_.path()).value();
  const std::vector<int32_t> hay(100, '.');
  const auto made = MakeNeedleDocument(tokenizer, hay, words_, {.length = 100}, 0);
  ASSERT_FALSE(made.ok());
  EXPECT_NE(made.status().message().find("--length is 100, wanted at least"), std::string::npos);
}

TEST_F(Needles, QuestionsOfOneTextSpreadTheirDepths) {
  const Tokenizer tokenizer = Tokenizer::Load(folder_.path()).value();
  const std::vector<int32_t> hay(100, '.');
  const NeedleOptions options{.length = 2000, .trials = 12, .keys = 4, .questions = 3, .seed = 3};
  std::vector<double> depths;
  for (int64_t d = 0; d < 4; ++d) {
    const NeedleDocument document = MakeNeedleDocument(tokenizer, hay, words_, options, d).value();
    ASSERT_EQ(document.questions.size(), 3u);
    const std::string text = tokenizer.Decode(document.ids);
    size_t longest = 0;
    for (const NeedleQuestion& q : document.questions) {
      depths.push_back(q.depth);
      longest = std::max(longest, q.ids.size());
      const std::string before = text.substr(0, text.find(train::NeedleSentence(q.key, q.value)));
      const auto dots = static_cast<double>(std::count(before.begin(), before.end(), '.'));
      EXPECT_NEAR(dots, q.depth * static_cast<double>(std::count(text.begin(), text.end(), '.')),
                  5);
    }
    EXPECT_EQ(document.ids.size() + longest, 2000u);
  }
  std::sort(depths.begin(), depths.end());
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_NEAR(depths[i], 0.05 + 0.9 * static_cast<double>(i) / 11, 1e-12);
  }
}

TEST_F(Needles, OptionsThatDoNotFitEachOtherAreRefused) {
  const Tokenizer tokenizer = Tokenizer::Load(folder_.path()).value();
  const std::vector<int32_t> hay(100, '.');
  const auto message = [&](const NeedleOptions& options) {
    return MakeNeedleDocument(tokenizer, hay, words_, options, 0).status().message();
  };
  EXPECT_EQ(message({.trials = 10, .keys = 4, .questions = 5}),
            "--questions is 5, wanted at most --keys, 4");
  EXPECT_EQ(message({.trials = 10, .keys = 4, .questions = 4}),
            "--trials is 10, wanted a multiple of --questions, 4");
}

TEST_F(Needles, AQuestionHasTheSameAnswerAloneAndBehindOthers) {
  const auto engine = TinyEngine(600);
  const std::vector<int32_t> hay(50, 'x');
  const NeedleOptions options{.length = 600, .trials = 4, .questions = 4};
  const NeedleReport report = MeasureNeedles(*engine, hay, words_, options).value();
  const NeedleDocument document =
      MakeNeedleDocument(*engine->tokenizer(), hay, words_, options, 0).value();
  for (size_t q = 0; q < 4; ++q) {
    auto session = infer::Session::Open(*engine).value();
    ASSERT_TRUE(session.Read(document.ids).ok());
    ASSERT_TRUE(session.Read(document.questions[q].ids).ok());
    const std::string alone =
        infer::Generate(session, {.sampling = {.temperature = 0}, .max_tokens = 16}).value().text;
    EXPECT_EQ(report.trials[q].answer, alone.substr(0, 7));
  }
}

TEST_F(Needles, ARandomModelFindsNothing) {
  const auto engine = TinyEngine(600);
  const std::vector<int32_t> hay(50, 'x');
  const NeedleReport report =
      MeasureNeedles(*engine, hay, words_, {.length = 600, .trials = 2}).value();
  EXPECT_EQ(report.accuracy, 0);
  ASSERT_EQ(report.trials.size(), 2u);
  EXPECT_EQ(report.trials[1].depth, 0.95);
}

}  // namespace
}  // namespace mm01::eval
