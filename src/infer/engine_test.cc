#include "infer/engine.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "infer/session.h"
#include "testing/tiny_model.h"

namespace mm01::infer {
namespace {

class EngineTest : public testing::Test {
 protected:
  EngineTest() { WriteTinyModel(folder_.path(), TinyConfig()); }

  Result<std::unique_ptr<Engine>> Load(EngineOptions options = {}) {
    options.num_threads = 1;
    return Engine::Load(folder_.path(), std::move(options));
  }
  void ExpectError(const Status& status, Code code, const std::string& part) {
    EXPECT_EQ(status.code(), code) << status.message();
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  }

  TempFolder folder_;
};

TEST_F(EngineTest, TypesFollowTheCheckpoint) {
  const auto f32 = Load();
  ASSERT_TRUE(f32.ok()) << f32.status().message();
  EXPECT_EQ((*f32)->weights().type, WeightType{});
  EXPECT_EQ((*f32)->state().kv_type(), DType::kF32);
  EXPECT_EQ((*f32)->tokenizer(), nullptr);
  EXPECT_EQ((*f32)->weights().vocab_used, 96);
  EXPECT_TRUE((*f32)->IsEnd(2));
  EXPECT_FALSE((*f32)->IsEnd(3));

  WriteTinyModel(folder_.path(), TinyConfig(), {.type = {DType::kI8, 32}});
  const auto int8 = Load();
  ASSERT_TRUE(int8.ok()) << int8.status().message();
  EXPECT_EQ((*int8)->weights().type, (WeightType{DType::kI8, 32}));
  EXPECT_EQ((*int8)->state().kv_type(), DType::kBF16);
}

TEST_F(EngineTest, WhatDoesNotFitIsRefusedWithTheNumbersBeforeItIsRead) {
  bool planned = false, loaded = false;
  const auto engine = Load({.memory_limit_bytes = 1000,
                            .on_plan =
                                [&](const MemoryPlan& plan) {
                                  planned = true;
                                  EXPECT_GT(plan.total(), 1000);
                                },
                            .on_load = [&](int64_t, int64_t) { loaded = true; }});
  ExpectError(engine.status(), Code::kTooLarge, "1000");
  EXPECT_TRUE(planned);
  EXPECT_FALSE(loaded);
}

TEST_F(EngineTest, ThePlanCountsTheWeightsThatAreLoaded) {
  for (const WeightType type : {WeightType{}, WeightType{DType::kBF16, 0}, {DType::kI8, 64}}) {
    const auto engine = Load({.weights = type});
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    EXPECT_EQ((*engine)->plan().weights, (*engine)->weights().bytes());
    EXPECT_EQ((*engine)->plan().state, (*engine)->state().lightning_bytes());
  }
}

TEST_F(EngineTest, MissingFilesAreNamed) {
  std::filesystem::remove(folder_ / "model.safetensors");
  ExpectError(Load().status(), Code::kNotFound, "model.safetensors");
  std::filesystem::remove(folder_ / "config.json");
  ExpectError(Load().status(), Code::kNotFound, "config.json");
}

TEST_F(EngineTest, ABrokenTokenizerIsAnErrorAndNoReasonToGoWithout) {
  std::ofstream(folder_ / "tokenizer.json") << "{";
  ExpectError(Load().status(), Code::kInvalid, "tokenizer.json");
}

TEST_F(EngineTest, ATokenizerWithMoreIdsThanTheModelIsRefused) {
  WriteTinyTokenizer(folder_.path());
  ExpectError(Load().status(), Code::kInvalid, "the tokenizer has ids up to 257");
}

TEST_F(EngineTest, RowsOfTheVocabularyWithoutATokenNeverWin) {
  TextConfig config = TinyConfig();
  config.vocab_size = 300;
  WriteTinyModel(folder_.path(), config);
  WriteTinyTokenizer(folder_.path());
  const auto engine = Load();
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  EXPECT_EQ((*engine)->weights().vocab_used, 258);
  Session session = Session::Open(**engine).value();
  ASSERT_TRUE(session.Read(TinyTokens(5)).ok());
  ASSERT_EQ(session.logits().size(), 300u);
  for (size_t v = 0; v < 300; ++v) {
    EXPECT_EQ(std::isinf(session.logits()[v]), v >= 258) << v;
  }
}

TEST_F(EngineTest, AStepHas512RowsOnACpu) {
  EXPECT_EQ(*(*Load({.context_tokens = 20'000}))->options().prefill_rows, 512);
  EXPECT_EQ(*(*Load({.prefill_rows = 5}))->options().prefill_rows, 5);
}

TEST_F(EngineTest, CountsBelowOneAreRefused) {
  ExpectError(Load({.context_tokens = 0}).status(), Code::kInvalid, "context");
  ExpectError(Load({.num_sequences = 0}).status(), Code::kInvalid, "sequences");
  EXPECT_EQ(Load({.prefill_rows = 0}).status().code(), Code::kInvalid);
}

TEST_F(EngineTest, FingerprintsDifferWhereStatesDo) {
  const uint64_t plain = (*Load())->fingerprint();
  EXPECT_EQ((*Load({.context_tokens = 77, .prefill_rows = 5}))->fingerprint(), plain);
  EXPECT_NE((*Load({.kv = DType::kBF16}))->fingerprint(), plain);
  EXPECT_NE((*Load({.weights = WeightType{DType::kI8, 32}}))->fingerprint(), plain);
}

TEST_F(EngineTest, ARandomModelRuns) {
  const auto engine = Engine::Random(TinyConfig(), {DType::kBF16, 0}, {.num_threads = 1});
  Session session = Session::Open(*engine).value();
  ASSERT_TRUE(session.Read(TinyTokens(5)).ok());
  for (const float logit : session.logits()) EXPECT_TRUE(std::isfinite(logit));
}

}  // namespace
}  // namespace mm01::infer
