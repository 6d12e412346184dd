#include "infer/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "testing/tiny_model.h"

namespace mm01::infer {
namespace {

constexpr int32_t kEndToken = 257;  // of WriteTinyTokenizer
constexpr GenerateOptions kGreedy{.sampling = {.temperature = 0.0}};

// A model whose most probable next token is a function of the last one: the layer adds nothing, and
// the head's row of a token is the embedding of the token before it.
void WriteScript(const std::string& folder, const std::vector<int32_t>& script) {
  TextConfig config = TinyConfig();
  config.vocab_size = 300;
  config.layers = {LayerKind::kLightning};
  config.num_experts = 0;
  config.num_experts_per_token = 0;
  config.eos_ids = {kEndToken};
  TinyTensors tensors = MakeTinyTensors(config);
  for (auto& [name, tensor] : tensors) {
    const bool adds = name.find("out_proj") != std::string::npos ||
                      name.find("down_proj") != std::string::npos || name == kLmHeadName;
    if (adds) std::ranges::fill(tensor.data, std::byte{0});
  }
  const std::vector<std::byte>& embedding = tensors.at(kEmbeddingName).data;
  std::vector<std::byte>& head = tensors.at(kLmHeadName).data;
  const int64_t row = config.hidden_size * SizeOf(DType::kF32);
  for (size_t i = 0; i + 1 < script.size(); ++i) {
    std::copy_n(embedding.begin() + script[i] * row, row, head.begin() + script[i + 1] * row);
  }
  WriteTinyCheckpoint(folder, config, tensors);
  WriteTinyTokenizer(folder);
}

class ScriptTest : public testing::Test {
 protected:
  // Each token once. Two make up "é", and one ends the text.
  ScriptTest() {
    WriteScript(folder_.path(),
                {'a', 'b', 'c', 'd', 0xC3, 0xA9, 'e', 'f', 'g', kEndToken, 'h', 'i'});
    engine_ = Engine::Load(folder_.path(), {.num_threads = 1, .context_tokens = 64}).value();
  }

  GenerateResult Run(GenerateOptions options) {
    options.sampling.temperature = 0.0;
    Session session = Session::Open(*engine_).value();
    Check(session.Read(std::vector<int32_t>{'a'}).ok(), "one token fits");
    pieces_.clear();
    GenerateResult result = Generate(session, options, [&](std::string_view text) {
                              pieces_.emplace_back(text);
                              return true;
                            }).value();
    std::string all;
    for (const std::string& piece : pieces_) all += piece;
    EXPECT_EQ(all, result.text) << "what went out is what comes back";
    read_ = session.tokens();
    return result;
  }

  TempFolder folder_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::string> pieces_;
  std::vector<int32_t> read_;
};

TEST_F(ScriptTest, WritesUntilTheEndToken) {
  const GenerateResult result = Run({});
  EXPECT_EQ(result.text, "bcdéefg");
  EXPECT_EQ(result.finish, Finish::kEnd);
  EXPECT_EQ(result.tokens,
            (std::vector<int32_t>{'b', 'c', 'd', 0xC3, 0xA9, 'e', 'f', 'g', kEndToken}));
  EXPECT_EQ(pieces_, (std::vector<std::string>{"b", "c", "d", "é", "e", "f", "g"}));
  EXPECT_EQ(read_.back(), 'g') << "the end token is not read";
}

TEST_F(ScriptTest, GoesOnPastTheEndTokenWhenAsked) {
  const GenerateResult result = Run({.max_tokens = 10, .ignore_end = true});
  EXPECT_EQ(result.text, "bcdéefgh") << "special tokens do not show";
  EXPECT_EQ(result.finish, Finish::kLength);
  EXPECT_EQ(read_.back(), 'h');
}

TEST_F(ScriptTest, AStopStringMayCrossTokens) {
  const GenerateResult result = Run({.stop = {"cdé"}});
  EXPECT_EQ(result.text, "b");
  EXPECT_EQ(result.finish, Finish::kStopString);
  EXPECT_EQ(result.tokens.size(), 5u);
  EXPECT_EQ(pieces_, (std::vector<std::string>{"b"}));
}

TEST_F(ScriptTest, WhatOnlyBeginsAStopStringIsHeldBackAndThenGoesOut) {
  EXPECT_EQ(Run({.stop = {"cdx"}}).text, "bcdéefg");
  EXPECT_EQ(pieces_, (std::vector<std::string>{"b", "cdé", "e", "f", "g"}));
  EXPECT_EQ(Run({.stop = {"fgx"}}).text, "bcdéefg") << "held back at the end of the text";
  EXPECT_EQ(pieces_.back(), "fg");
}

TEST_F(ScriptTest, TheFirstOfSeveralStopStringsCounts) {
  EXPECT_EQ(Run({.stop = {"zz", "e", "cd"}}).text, "b");
  EXPECT_EQ(Run({.stop = {"", "e"}}).text, "bcdé") << "an empty one is none";
}

TEST_F(ScriptTest, AStopStringInsideACodePointLeavesWholeOnes) {
  EXPECT_EQ(Run({.stop = {"\xA9"}}).text, "bcd");
}

TEST_F(ScriptTest, AStopStringMayBeMadeOfWhatIsLeftAtTheEnd) {
  const GenerateResult result = Run({.max_tokens = 4, .stop = {"d\uFFFD"}});
  EXPECT_EQ(result.text, "bc");
  EXPECT_EQ(result.finish, Finish::kStopString);
}

TEST_F(ScriptTest, TheNumberOfTokensIsALimit) {
  const GenerateResult none = Run({.max_tokens = 0});
  EXPECT_TRUE(none.tokens.empty());
  EXPECT_EQ(none.text, "");
  EXPECT_EQ(none.finish, Finish::kLength);
  EXPECT_EQ(Run({.max_tokens = 3}).text, "bcd");
  EXPECT_EQ(Run({.max_tokens = 4}).text, "bcd\uFFFD") << "cut inside a code point";
}

TEST_F(ScriptTest, TheCallerMayStopAndIsNotCalledAgain) {
  Session session = Session::Open(*engine_).value();
  ASSERT_TRUE(session.Read(std::vector<int32_t>{'a'}).ok());
  int calls = 0;
  GenerateOptions options = kGreedy;
  options.stop = {"bx"};  // holds "b" back, so that two letters come at once
  const auto result = Generate(session, options, [&](std::string_view) {
    ++calls;
    return false;
  });
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(result->finish, Finish::kCancelled);
  EXPECT_EQ(result->text, "bc");
  EXPECT_EQ(session.tokens(), (std::vector<int32_t>{'a', 'b', 'c'})) << "the session can go on";
}

TEST_F(ScriptTest, WrongRequestsAreErrors) {
  Session session = Session::Open(*engine_).value();
  EXPECT_EQ(Generate(session, kGreedy).status().message(),
            "there is nothing to go on from: the prompt is empty");
  ASSERT_TRUE(session.Read(std::vector<int32_t>{'a'}).ok());
  EXPECT_EQ(Generate(session, {.sampling = {.temperature = -1.0}}).status().code(), Code::kInvalid);
}

class SamplingTest : public testing::Test {
 protected:
  SamplingTest() { WriteTinyModel(folder_.path(), TinyConfig()); }

  std::unique_ptr<Engine> Load(int threads) {
    return Engine::Load(folder_.path(), {.num_threads = threads, .context_tokens = 256}).value();
  }
  static std::vector<int32_t> Write(Session& session, double temperature, uint64_t seed,
                                    int64_t count) {
    GenerateOptions options{.max_tokens = count, .ignore_end = true};
    options.sampling.temperature = temperature;
    options.sampling.repetition_penalty = 1.1;
    options.sampling.seed = seed;
    return Generate(session, options).value().tokens;
  }
  static Session Prompted(Engine& engine) {
    Session session = Session::Open(engine).value();
    Check(session.Read(TinyTokens(50)).ok(), "the prompt fits");
    return session;
  }

  TempFolder folder_;
};

TEST_F(SamplingTest, TokensDoNotDependOnThreadsOrOnTheRun) {
  const auto one = Load(1), two = Load(2);
  constexpr int64_t kCount = 15;
  for (const double temperature : {0.0, 1.0}) {
    std::vector<int32_t> first;
    {
      Session session = Prompted(*one);
      first = Write(session, temperature, 5, kCount);
    }
    Session again = Prompted(*one), elsewhere = Prompted(*two);
    EXPECT_EQ(Write(again, temperature, 5, kCount), first);
    EXPECT_EQ(Write(elsewhere, temperature, 5, kCount), first);
  }
}

TEST_F(SamplingTest, AnotherSeedIsAnotherText) {
  const auto a = Load(1), b = Load(1);
  Session first = Prompted(*a), second = Prompted(*b);
  EXPECT_NE(Write(first, 1.0, 1, 40), Write(second, 1.0, 2, 40));
}

TEST_F(SamplingTest, APauseInAFileChangesNothing) {
  const auto engine = Load(1);
  const std::string file = folder_ / "state";
  std::vector<int32_t> want, got;
  {
    Session session = Prompted(*engine);
    want = Write(session, 1.0, 9, 40);
  }
  {
    Session session = Prompted(*engine);
    got = Write(session, 1.0, 9, 17);
    ASSERT_TRUE(session.Save(file).ok());
  }
  Session session = Session::Load(*engine, file).value();
  const std::vector<int32_t> rest = Write(session, 1.0, 9, 23);
  got.insert(got.end(), rest.begin(), rest.end());
  EXPECT_EQ(got, want);
}

TEST_F(SamplingTest, AFullContextIsAnErrorWithTheNumbers) {
  const auto engine = Load(1);
  Session session = Prompted(*engine);
  GenerateOptions options{.max_tokens = 10'000, .ignore_end = true};
  const Status status = Generate(session, options).status();
  EXPECT_EQ(status.code(), Code::kTooLarge);
  EXPECT_NE(status.message().find("321 tokens of context do not fit"), std::string::npos)
      << status.message();
}

TEST(FinishTest, HasAName) {
  EXPECT_STREQ(ToString(Finish::kEnd), "end");
  EXPECT_STREQ(ToString(Finish::kStopString), "stop");
  EXPECT_STREQ(ToString(Finish::kLength), "length");
  EXPECT_STREQ(ToString(Finish::kCancelled), "cancelled");
}

}  // namespace
}  // namespace mm01::infer
