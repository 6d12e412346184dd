// References made of the model's own numbers, and what happens when they are wrong.
#include "eval/compare.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "infer/generate.h"
#include "infer/session.h"
#include "kernels/sample/sample.h"
#include "testing/tiny_model.h"

namespace mm01::eval {
namespace {

constexpr int64_t kLength = 20, kVocabulary = 96, kTop = 3;

using Shape = std::vector<int64_t>;

class CompareTest : public testing::Test {
 protected:
  CompareTest() {
    WriteTinyModel(folder_.path(), TinyConfig());
    engine_ = infer::Engine::Load(folder_.path(), {.num_threads = 1, .context_tokens = 64}).value();
    infer::Session session = infer::Session::Open(*engine_).value();
    for (const int32_t id : ids_) {
      Check(session.Read({&id, 1}).ok(), "the text fits");
      const auto logits = session.logits();
      logits_.insert(logits_.end(), logits.begin(), logits.end());
    }
    infer::GenerateOptions greedy{.max_tokens = 8, .ignore_end = true};
    greedy.sampling.temperature = 0.0;
    const std::vector<int32_t> tokens = infer::Generate(session, greedy).value().tokens;
    greedy_.assign(tokens.begin(), tokens.end());
    Put<int64_t>("input_ids", {1, kLength}, {ids_.begin(), ids_.end()});
  }

  template <typename T>
  void Put(const std::string& name, const Shape& shape, const std::vector<T>& values) {
    TinyPut(TinyRoom(reference_, name, kDTypeOf<T>, shape), 0, values);
  }

  Result<CompareReport> Run(double tolerance = 1e-6) {
    std::vector<const TinyTensor*> tensors;
    for (const auto& [name, tensor] : reference_) tensors.push_back(&tensor);
    WriteTinyFile(file_, tensors);
    return Compare(*engine_, file_, tolerance);
  }
  CompareReport RunOk(double tolerance = 1e-6) {
    const Result<CompareReport> report = Run(tolerance);
    Check(report.ok(), report.status().message());
    return *report;
  }
  void ExpectRefused(Code code, const std::string& part) {
    const Status status = Run().status();
    EXPECT_EQ(status.code(), code) << status.message();
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(file_), std::string::npos) << status.message();
  }
  std::span<const float> LogitsAt(int64_t position) const {
    return std::span(logits_).subspan(static_cast<size_t>(position * kVocabulary), kVocabulary);
  }

  TempFolder folder_;
  std::string file_ = folder_ / "reference.safetensors";
  std::unique_ptr<infer::Engine> engine_;
  std::vector<int32_t> ids_ = TinyTokens(kLength);
  std::vector<float> logits_;
  std::vector<int64_t> greedy_;
  TinyTensors reference_;
};

TEST_F(CompareTest, AModelAgreesWithItself) {
  std::vector<float> top_values, logsumexp, nll;
  std::vector<int64_t> top_ids;
  double mean = 0.0;
  for (int64_t t = 0; t < kLength; ++t) {
    for (const TokenLogprob& top : TopLogprobs(LogitsAt(t), kTop)) {
      top_ids.push_back(top.id);
      top_values.push_back(LogitsAt(t)[static_cast<size_t>(top.id)]);
    }
    logsumexp.push_back(static_cast<float>(LogSumExp(LogitsAt(t))));
    if (t + 1 == kLength) break;
    const auto next = static_cast<size_t>(ids_[static_cast<size_t>(t + 1)]);
    nll.push_back(
        static_cast<float>(LogSumExp(LogitsAt(t)) - static_cast<double>(LogitsAt(t)[next])));
    mean += static_cast<double>(nll.back()) / (kLength - 1);
  }
  Put("logits", {1, kLength, kVocabulary}, logits_);
  Put("top_values", {kLength, kTop}, top_values);
  Put("top_ids", {kLength, kTop}, top_ids);
  Put("logsumexp", {kLength}, logsumexp);
  Put("nll", {kLength - 1}, nll);
  Put("generated", {1, 8}, greedy_);
  Put<float>("loss", {1}, {1.0f});

  const CompareReport report = RunOk(0.0);
  EXPECT_TRUE(report.ok()) << report.first_deviating;
  ASSERT_EQ(report.tensors.size(), 6u);
  for (const Comparison& c : report.tensors) {
    EXPECT_EQ(c.relative_error, 0.0) << c.name;
    EXPECT_EQ(c.exact, c.name == "top_ids" || c.name == "generated") << c.name;
  }
  EXPECT_NEAR(report.mean_nll, mean, 1e-9);
  EXPECT_EQ(report.not_compared, std::vector<std::string>{"loss"});
}

TEST_F(CompareTest, TheErrorIsThatOfThe2Norms) {
  std::vector<float> hidden(static_cast<size_t>(kLength * 64));
  const TextWeights& w = engine_->weights();
  double norm = 0.0;
  for (int64_t t = 0; t < kLength; ++t) {
    const auto row = std::span(hidden).subspan(static_cast<size_t>(t * 64), 64);
    w.embedding.GetRow(ids_[static_cast<size_t>(t)], row);
  }
  hidden[5] += 3.0f;
  for (const float x : hidden) norm += static_cast<double>(x) * static_cast<double>(x);
  Put("hidden.0", {1, kLength, 64}, hidden);
  const CompareReport report = RunOk();
  ASSERT_EQ(report.tensors.size(), 1u);
  EXPECT_NEAR(report.tensors[0].relative_error, 3.0 / std::sqrt(norm), 1e-6);
  EXPECT_NEAR(report.tensors[0].largest_difference, 3.0, 1e-6);
  EXPECT_EQ(report.first_deviating, "hidden.0");
  EXPECT_TRUE(RunOk(1.0).ok());
}

TEST_F(CompareTest, TheFirstThatDeviatesIsFirstInTheForwardPass) {
  Put("logits", {1, kLength, kVocabulary}, std::vector<float>(logits_.size(), 1.0f));
  Put("hidden.4", {1, kLength, 64}, std::vector<float>(kLength * 64, 1.0f));
  Put("hidden.2", {1, kLength, 64}, std::vector<float>(kLength * 64, 1.0f));
  Put("router.2", {kLength, 4}, std::vector<float>(kLength * 4, 1.0f));
  Put("router.3", {1, kLength, 4}, std::vector<float>(kLength * 4, 1.0f));
  const CompareReport report = RunOk();
  std::vector<std::string> names;
  for (const Comparison& c : report.tensors) names.push_back(c.name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"hidden.2", "router.2", "router.3", "hidden.4", "logits"}));
  EXPECT_EQ(report.first_deviating, "hidden.2");
}

TEST_F(CompareTest, LogitsOfSomePositionsAreEnough) {
  std::vector<float> some(LogitsAt(3).begin(), LogitsAt(3).end());
  some.insert(some.end(), LogitsAt(17).begin(), LogitsAt(17).end());
  Put("logits", {1, 2, kVocabulary}, some);
  Put<int64_t>("logits_positions", {2}, {3, 17});
  EXPECT_TRUE(RunOk(0.0).ok());
  Put<int64_t>("logits_positions", {2}, {3, 16});
  EXPECT_FALSE(RunOk().ok());
  Put<int64_t>("logits_positions", {2}, {3, kLength});
  ExpectRefused(Code::kInvalid, "logits_positions holds 20, wanted 0 to 19");
}

TEST_F(CompareTest, GreedyTokensMayComeAfterTheirPrompt) {
  std::vector<int64_t> all(ids_.begin(), ids_.end());
  all.insert(all.end(), greedy_.begin(), greedy_.end());
  Put("generated", {1, kLength + 8}, all);
  EXPECT_TRUE(RunOk().ok());
  all.back() ^= 1;
  Put("generated", {1, kLength + 8}, all);
  const CompareReport report = RunOk();
  EXPECT_EQ(report.first_deviating, "generated");
  EXPECT_EQ(report.tensors[0].num_unequal, 1);
}

TEST_F(CompareTest, IdsOfTheLargestLogitsMustBeThose) {
  std::vector<int64_t> best;
  for (int64_t t = 0; t < kLength; ++t) best.push_back(TopLogprobs(LogitsAt(t), 1)[0].id);
  Put("top_ids", {kLength, 1}, best);
  EXPECT_TRUE(RunOk().ok());
  best[4] = TopLogprobs(LogitsAt(4), 2)[1].id;
  Put("top_ids", {kLength, 1}, best);
  EXPECT_FALSE(RunOk().ok());
  EXPECT_TRUE(RunOk(10.0).ok()) << "within the tolerance the two may change places";
  best[4] = -1;
  Put("top_ids", {kLength, 1}, best);
  EXPECT_FALSE(RunOk(10.0).ok());
}

TEST_F(CompareTest, NaNIsNeverWithinTheTolerance) {
  std::vector<float> logits = logits_;
  logits[7] = std::numeric_limits<float>::quiet_NaN();
  Put("logits", {1, kLength, kVocabulary}, logits);
  EXPECT_EQ(RunOk(1e30).first_deviating, "logits");
}

TEST_F(CompareTest, ReferencesThatDoNotFitAreRefused) {
  Put("logits", {1, kLength, 2}, std::vector<float>(kLength * 2));
  ExpectRefused(Code::kInvalid, "logits has 40 values, the model gives 1920");
  reference_.erase("logits");
  Put<double>("hidden.0", {1}, {1.0});
  EXPECT_FALSE(Run().ok());
  reference_.erase("hidden.0");

  Put<int64_t>("attention_mask", {1, kLength}, std::vector<int64_t>(kLength, 1));
  EXPECT_TRUE(Run().ok());
  Put<int64_t>("attention_mask", {1, kLength}, std::vector<int64_t>(kLength, 0));
  ExpectRefused(Code::kUnsupported, "attention_mask masks tokens");
  reference_.erase("attention_mask");

  Put<int64_t>("input_ids", {2}, {1, 96});
  ExpectRefused(Code::kInvalid, "input_ids holds 96, the model's vocabulary is 0 to 95");
  Put<float>("input_ids", {2}, {1.0f, 2.0f});
  ExpectRefused(Code::kUnsupported, "input_ids is float32");
  Put<int64_t>("input_ids", {0}, {});
  Put<int64_t>("x", {1}, {0});
  ExpectRefused(Code::kInvalid, "input_ids of shape [N, T] or [T]");
  reference_.erase("input_ids");
  ExpectRefused(Code::kInvalid, "input_ids of shape [N, T] or [T]");
}

TEST_F(CompareTest, ATextLongerThanTheContextIsRefusedAndItsSlotFreed) {
  Put<int64_t>("input_ids", {500}, std::vector<int64_t>(500, 1));
  EXPECT_EQ(Run().status().code(), Code::kTooLarge);
  Put<int64_t>("input_ids", {2}, {1, 2});
  EXPECT_TRUE(Run().ok());
}

}  // namespace
}  // namespace mm01::eval
