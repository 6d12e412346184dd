#include "eval/needle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

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

  TempFolder folder_;
  std::vector<std::string> words_;
};

TEST_F(Needles, ThePromptHasTheLengthTheDepthAndAllKeys) {
  const Tokenizer tokenizer = Tokenizer::Load(folder_.path()).value();
  const std::vector<int32_t> hay(100, '.');  // shorter than the text that is wanted
  const NeedleOptions options{.length = 2000, .trials = 10, .keys = 4, .seed = 3};
  for (int64_t t = 0; t < 10; ++t) {
    const NeedlePrompt prompt = MakeNeedlePrompt(tokenizer, hay, words_, options, t).value();
    EXPECT_EQ(prompt.ids.size(), 2000u);
    EXPECT_NEAR(prompt.depth, 0.05 + 0.1 * static_cast<double>(t), 1e-12);
    const std::string text = tokenizer.Decode(prompt.ids);
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
  const auto prompt = MakeNeedlePrompt(tokenizer, hay, words_, {.length = 100}, 0);
  ASSERT_FALSE(prompt.ok());
  EXPECT_NE(prompt.status().message().find("--length is 100, wanted at least"), std::string::npos);
}

TEST_F(Needles, ARandomModelFindsNothing) {
  TextConfig config = TinyConfig();
  config.vocab_size = 258;
  config.eos_ids = {257};
  WriteTinyModel(folder_.path(), config);
  const auto engine =
      infer::Engine::Load(folder_.path(), {.num_threads = 1, .context_tokens = NeedleContext(600)})
          .value();
  const std::vector<int32_t> hay(50, 'x');
  const NeedleReport report =
      MeasureNeedles(*engine, hay, words_, {.length = 600, .trials = 2}).value();
  EXPECT_EQ(report.accuracy, 0);
  ASSERT_EQ(report.trials.size(), 2u);
  EXPECT_EQ(report.trials[1].depth, 0.95);
}

}  // namespace
}  // namespace mm01::eval
