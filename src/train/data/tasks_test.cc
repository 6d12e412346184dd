#include "train/data/tasks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "testing/tiny_training.h"

namespace mm01::train {
namespace {

class Tasks : public testing::Test {
 protected:
  TokenSpan Make(const TaskSpec& spec, uint64_t stream, int64_t length) {
    const DataSetHaystack haystack(set_);
    const TaskMaker maker(spec, tokenizer_, words_,
                          spec.kind == TaskKind::kRecall ? nullptr : &haystack);
    TokenSpan span = maker.Make(5, stream, length).value();
    EXPECT_EQ(std::ssize(span.ids), length);
    EXPECT_EQ(span.counted.size(), span.ids.size());
    return span;
  }
  std::string Text(const TokenSpan& span) const { return tokenizer_.Decode(span.ids); }
  // The counted tokens' text.
  std::string Answers(const TokenSpan& span) const {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < span.ids.size(); ++i) {
      if (span.counted[i]) ids.push_back(span.ids[i]);
    }
    return tokenizer_.Decode(ids);
  }

  TinyTraining tiny_;
  Tokenizer tokenizer_ = Tokenizer::Load(tiny_ / "tokenizer.json").value();
  DataSet set_ = DataSet::Open(tiny_ / "text").value();
  WordList words_ = WordList::Load(tiny_ / "words.json").value();
};

TEST_F(Tasks, EveryTenthWordIsHeldOut) {
  EXPECT_EQ(words_.training.size(), 180u);
  ASSERT_EQ(words_.held_out.size(), 20u);
  EXPECT_EQ(words_.held_out[0], "word9");
}

TEST_F(Tasks, NeedlesAreInTheTextAndAskedFor) {
  const TaskSpec spec{.name = "n", .keys = {3, 3}, .questions = {2, 2}};
  for (uint64_t stream = 0; stream < 20; ++stream) {
    const TokenSpan span = Make(spec, stream, 600);
    const std::string text = Text(span), answers = Answers(span);
    ASSERT_EQ(answers.size(), 2u * 9);  // "1234567.\n" twice
    size_t at = 0;
    for (int q = 0; q < 2; ++q) {
      at = text.find("What is the special magic number for ", at) + 37;
      const std::string key = text.substr(at, text.find('?', at) - at);
      const std::string value = answers.substr(static_cast<size_t>(9 * q), 7);
      EXPECT_NE(text.find(NeedleSentence(key, value)), std::string::npos) << text;
      EXPECT_NE(text.find(NeedleQuestion(key) + value + ".\n"), std::string::npos) << text;
      for (const std::string& word : words_.held_out) {
        EXPECT_EQ((key + " ").find(word + " "), std::string::npos) << key;
      }
    }
    EXPECT_EQ(text, Text(Make(spec, stream, 600)));
  }
}

TEST_F(Tasks, QuestionsMayStandAnywhereBehindTheirNeedle) {
  const TaskSpec spec{.name = "n", .keys = {1, 1}, .questions = {1, 1}, .ask_anywhere = true};
  bool within = false;
  for (uint64_t stream = 0; stream < 20; ++stream) {
    const std::string text = Text(Make(spec, stream, 500));
    const size_t question = text.find("\nWhat is");
    EXPECT_LT(text.find("\nThe special"), question);
    within |= question < 300;
  }
  EXPECT_TRUE(within);
}

TEST_F(Tasks, RecallAsksForLinesOfItsList) {
  const TaskSpec spec{.name = "r", .kind = TaskKind::kRecall, .keys = {8, 8}, .questions = {2, 2}};
  const TokenSpan span = Make(spec, 1, 400);
  const std::string text = Text(span), answers = Answers(span);
  for (const size_t q : {0, 8}) {
    const std::string line = ": " + answers.substr(q, 8);
    const size_t first = text.find(line);
    ASSERT_NE(first, std::string::npos);
    EXPECT_NE(text.find(line, first + 1), std::string::npos) << text;
  }
}

TEST_F(Tasks, VariablesNameAllThatHoldAValue) {
  const TaskSpec spec{.name = "v", .kind = TaskKind::kVariables};
  const std::string text = Text(Make(spec, 1, 300)), answers = Answers(Make(spec, 1, 300));
  ASSERT_EQ(answers.size(), 3u * 6 + 2);
  const std::string a = answers.substr(1, 5), b = answers.substr(7, 5), c = answers.substr(13, 5);
  EXPECT_NE(text.find("VAR " + b + " = VAR " + a), std::string::npos) << text;
  EXPECT_NE(text.find("VAR " + c + " = VAR " + b), std::string::npos) << text;
}

TEST_F(Tasks, KeysThatDoNotFitAreLeftOut) {
  const TaskSpec spec{.name = "n", .keys = {50, 50}, .questions = {1, 1}};
  Make(spec, 1, 400);
  const DataSetHaystack haystack(set_);
  const TaskMaker maker(spec, tokenizer_, words_, &haystack);
  const auto none = maker.Make(5, 1, 50);
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.status().message().find("not one fact"), std::string::npos);
}

TEST_F(Tasks, LossOfAllCountsAll) {
  const TaskSpec spec{.name = "n", .loss = TaskLoss::kAll};
  const TokenSpan span = Make(spec, 1, 400);
  EXPECT_EQ(std::count(span.counted.begin(), span.counted.end(), 1), 400);
}

TEST_F(Tasks, LossOfTextLeavesOutFactsAndQuestions) {
  const TaskSpec spec{.name = "n", .keys = {2, 2}, .questions = {2, 2}, .loss = TaskLoss::kText};
  const TokenSpan span = Make(spec, 1, 600);
  std::vector<int32_t> others;
  for (size_t i = 0; i < span.ids.size(); ++i) {
    if (!span.counted[i]) others.push_back(span.ids[i]);
  }
  const std::string left_out = tokenizer_.Decode(others);
  const size_t fact = left_out.find("\nThe special"), question = left_out.find("\nWhat is");
  EXPECT_EQ(fact, 0u) << left_out;
  EXPECT_LT(question, left_out.size());
  EXPECT_EQ(left_out.find("the cat"), std::string::npos) << left_out;
  TaskSpec answers = spec;
  answers.loss = TaskLoss::kAnswers;
  const std::string wanted = Answers(Make(answers, 1, 600));
  EXPECT_TRUE(Answers(span).ends_with(wanted));
}

TEST_F(Tasks, HaystacksBeginAtEveryTokenAlike) {
  const DataSetHaystack haystack(set_);
  std::vector<int32_t> all;
  for (int64_t d = 0; d < set_.num_documents(); ++d) {
    TokenSpan span;
    ASSERT_TRUE(set_.Read(d, 0, set_.Length(d), &span).ok());
    all.insert(all.end(), span.ids.begin(), span.ids.end());
  }
  for (uint64_t stream = 0; stream < 50; ++stream) {
    Draw draw(3, stream), same(3, stream);
    const std::vector<int32_t> hay = haystack.Take(100, draw).value();
    const auto begin = static_cast<size_t>(same.Below(std::ssize(all)));
    ASSERT_EQ(hay.size(), 100u);
    for (size_t i = 0; i < 100; ++i) EXPECT_EQ(hay[i], all[(begin + i) % all.size()]);
  }
}

}  // namespace
}  // namespace mm01::train
