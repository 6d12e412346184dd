#include "kernels/sample/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "base/rng.h"

namespace mm01 {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

std::vector<float> Logs(std::initializer_list<double> weights) {
  std::vector<float> x;
  for (const double w : weights) x.push_back(static_cast<float>(std::log(w)));
  return x;
}

// Every token that 2,000 draws give.
std::set<int32_t> Drawn(const std::vector<float>& logits, const SamplingParams& params,
                        const std::vector<int32_t>& previous = {}) {
  std::set<int32_t> ids;
  for (uint64_t n = 0; n < 2000; ++n) ids.insert(Sample(logits, params, previous, 0, n));
  return ids;
}

using Ids = std::set<int32_t>;

TEST(SampleTest, GreedyTakesTheLargestAndTheLowestIdOfEquals) {
  const std::vector<float> x = {1, 3, -2, 3, kMasked};
  EXPECT_EQ(Sample(x, {.temperature = 0}, {}, 0, 0), 1);
  EXPECT_EQ(Sample(x, {.temperature = 0, .top_k = 4, .min_p = 0.5}, {}, 7, 9), 1);
}

TEST(SampleTest, OneRandomNumberPicksTheTokenInOrderOfId) {
  const std::vector<float> x(4, 2.5f);
  for (uint64_t position = 0; position < 200; ++position) {
    const double u = RandomUniform(11, 5, position);
    EXPECT_EQ(Sample(x, {.seed = 11}, {}, 5, position), static_cast<int32_t>(4 * u));
  }
}

TEST(SampleTest, SeedRequestAndPositionEachChangeTheDraw) {
  const std::vector<float> x(1000, 0.f);
  const auto draw = [&](uint64_t seed, uint64_t request, uint64_t position) {
    return Sample(x, {.seed = seed}, {}, request, position);
  };
  EXPECT_EQ(draw(1, 2, 3), draw(1, 2, 3));
  EXPECT_NE(draw(1, 2, 3), draw(9, 2, 3));
  EXPECT_NE(draw(1, 2, 3), draw(1, 9, 3));
  EXPECT_NE(draw(1, 2, 3), draw(1, 2, 9));
}

TEST(SampleTest, DrawsFollowTheDistribution) {
  const std::vector<float> x = Logs({1, 2, 3, 4, 5, 6, 7, 8});
  std::vector<double> count(8);
  constexpr int kDraws = 36000;
  for (uint64_t n = 0; n < kDraws; ++n) {
    ++count[static_cast<std::size_t>(Sample(x, {.seed = 3}, {}, 0, n))];
  }
  double chi_square = 0;
  for (std::size_t i = 0; i < 8; ++i) {
    const double expected = 1000.0 * static_cast<double>(i + 1);  // the weights add up to 36
    chi_square += (count[i] - expected) * (count[i] - expected) / expected;
  }
  EXPECT_LT(chi_square, 24.32) << "one in 1,000 at 7 degrees of freedom";
  EXPECT_GT(chi_square, 0.60) << "too even: one in 1,000 on the other side";
}

TEST(SampleTest, TemperatureRaisesTheWeightsToItsInverse) {
  // Weights 1 : 2 at temperature 0.5 are 1 : 4, so the border lies at u = 0.2.
  const std::vector<float> x = Logs({1, 2});
  for (uint64_t n = 0; n < 500; ++n) {
    EXPECT_EQ(Sample(x, {.temperature = 0.5}, {}, 0, n), RandomUniform(0, 0, n) < 0.2 ? 0 : 1);
  }
  EXPECT_EQ(Drawn({5.f, 5.001f, -3e38f}, {.temperature = 1e-300}), Ids{1});
  EXPECT_EQ(Drawn({5.f, 0.f, -3e38f}, {.temperature = 1e300}), (Ids{0, 1, 2}));
}

TEST(SampleTest, TopKKeepsKTokensAndTheLowerIdsOfEquals) {
  const std::vector<float> x = {1, 2, 1, 1, 2};
  EXPECT_EQ(Drawn(x, {.top_k = 1}), Ids{1});
  EXPECT_EQ(Drawn(x, {.top_k = 3}), (Ids{0, 1, 4}));
  EXPECT_EQ(Drawn(x, {.top_k = 5}), (Ids{0, 1, 2, 3, 4}));
  EXPECT_EQ(Drawn(x, {.top_k = 1000000}), (Ids{0, 1, 2, 3, 4})) << "more than the vocabulary";
}

TEST(SampleTest, TopPKeepsTheFewestTokensThatReachIt) {
  // Shares 1/16, 4/16, 8/16, 2/16, 1/16.
  const std::vector<float> x = Logs({1, 4, 8, 2, 1});
  EXPECT_EQ(Drawn(x, {.top_p = 1e-12}), Ids{2}) << "one stays, however small p is";
  EXPECT_EQ(Drawn(x, {.top_p = 0.49}), Ids{2});
  EXPECT_EQ(Drawn(x, {.top_p = 0.51}), (Ids{1, 2}));
  EXPECT_EQ(Drawn(x, {.top_p = 0.76}), (Ids{1, 2, 3}));
  EXPECT_EQ(Drawn(x, {.top_p = 0.93}), (Ids{0, 1, 2, 3})) << "the lower id of two equals";
  EXPECT_EQ(Drawn(x, {.top_p = 0.95}), (Ids{0, 1, 2, 3, 4}));
}

TEST(SampleTest, MinPIsAShareOfTheLargestProbability) {
  const std::vector<float> x = Logs({1, 4, 8, 2, 1});
  EXPECT_EQ(Drawn(x, {.min_p = 1}), Ids{2});
  EXPECT_EQ(Drawn(x, {.min_p = 0.45}), (Ids{1, 2}));
  EXPECT_EQ(Drawn(x, {.min_p = 0.12}), (Ids{0, 1, 2, 3, 4}));
}

TEST(SampleTest, FiltersRunInTheOrderOfTheHeader) {
  const std::vector<float> x = Logs({1, 4, 8, 2, 1});
  // Top-k first: of the two left, 8/12 alone reaches 0.6. Top-p over all tokens would need both.
  EXPECT_EQ(Drawn(x, {.top_k = 2, .top_p = 0.6}), Ids{2});
  // Temperature before top-p: at 0.5 the largest holds 64 of 86, at 1 it holds 8 of 16.
  EXPECT_EQ(Drawn(x, {.temperature = 0.5, .top_p = 0.7}), Ids{2});
  // Top-p before min-p: 8/16 does not reach 0.6, so two stay. Min-p first would leave 8 and 4, of
  // which 8/12 does.
  EXPECT_EQ(Drawn(x, {.top_p = 0.6, .min_p = 0.3}), (Ids{1, 2}));
  // The penalty before top-k: 8 becomes 8^(1/3) = 2.
  EXPECT_EQ(Drawn(x, {.top_k = 1, .repetition_penalty = 3}, {2}), Ids{1});
}

TEST(SampleTest, PenaltyDividesPositiveAndMultipliesNegativeLogitsOnce) {
  // 3 / 2 = 1.5 loses to 2; -1 * 2 = -2 loses to -1.5; a repeat does not count twice: 3 / 2 > 1.
  EXPECT_EQ(Sample(std::vector<float>{3, 2}, {.temperature = 0, .repetition_penalty = 2},
                   std::vector<int32_t>{0}, 0, 0),
            1);
  EXPECT_EQ(Sample(std::vector<float>{-1, -1.5f}, {.temperature = 0, .repetition_penalty = 2},
                   std::vector<int32_t>{0}, 0, 0),
            1);
  EXPECT_EQ(Sample(std::vector<float>{3, 1}, {.temperature = 0, .repetition_penalty = 2},
                   std::vector<int32_t>{0, 0, 0}, 0, 0),
            0);
  EXPECT_EQ(Drawn({3e38f, -3e38f, kMasked}, {.repetition_penalty = 1e-308}, {0, 1, 2}), Ids{0});
  EXPECT_EQ(Drawn({3e38f, -3e38f, kMasked}, {.repetition_penalty = 1e308}, {0, 1, 2}), Ids{0});
}

TEST(SampleTest, MaskedTokensAreNeverDrawn) {
  std::vector<float> x(50, kMasked);
  x[17] = -1000.f;
  const SamplingParams all = {.temperature = 100, .top_k = 40, .top_p = 0.999, .min_p = 0.001};
  EXPECT_EQ(Drawn(x, {}), Ids{17});
  EXPECT_EQ(Drawn(x, all), Ids{17});
  EXPECT_EQ(Sample(x, {.temperature = 0}, {}, 0, 0), 17);
  x[3] = -1000.f;
  EXPECT_EQ(Drawn(x, {.temperature = 1e6}), (Ids{3, 17}));
}

TEST(SampleTest, BrokenLogitsAreABug) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {0.0, 1.0}) {
    const SamplingParams params = {.temperature = temperature};
    const auto sample = [&](std::vector<float> x) { return Sample(x, params, {}, 0, 0); };
    EXPECT_THROW(sample({1, nan}), Bug);
    EXPECT_THROW(sample({nan, 1}), Bug);
    EXPECT_THROW(sample({1, -kMasked}), Bug);
    EXPECT_THROW(sample({kMasked, kMasked}), Bug);
    EXPECT_THROW(sample({}), Bug);
  }
  const std::vector<float> x = {1, 2};
  const std::vector<int32_t> outside = {2};
  EXPECT_THROW(Sample(x, {.repetition_penalty = 2}, outside, 0, 0), Bug);
  EXPECT_THROW(LogSumExp(std::vector<float>{nan}), Bug);
  EXPECT_THROW(TopLogprobs(x, -1), Bug);
}

// The header's five steps with a full sort.
int32_t PlainSample(const std::vector<float>& x, const SamplingParams& params, double u) {
  std::vector<std::size_t> ids(x.size());
  std::iota(ids.begin(), ids.end(), 0u);
  std::sort(ids.begin(), ids.end(),
            [&](auto a, auto b) { return x[a] > x[b] || (x[a] == x[b] && a < b); });
  if (params.top_k > 0) ids.resize(std::min(ids.size(), static_cast<std::size_t>(params.top_k)));
  std::vector<double> w(x.size(), 0.0);
  double total = 0;
  const double max = x[ids[0]];
  for (const auto i : ids) total += w[i] = std::exp((x[i] - max) / params.temperature);
  double mass = 0;
  for (const auto i : ids) {
    const bool keep = mass < params.top_p * total && w[i] >= params.min_p;
    mass += w[i];
    if (!keep) w[i] = 0;
  }
  const double target = u * std::accumulate(w.begin(), w.end(), 0.0);
  mass = 0;
  std::size_t id = 0;
  while ((mass += w[id]) <= target) ++id;
  return static_cast<int32_t>(id);
}

TEST(SampleTest, EqualsAPlainFullSort) {
  for (uint64_t trial = 0; trial < 400; ++trial) {
    const auto pick = [&](uint64_t n, int choices) {
      return static_cast<std::size_t>(RandomUniform(1, trial, n) * choices);
    };
    const std::size_t vocabularies[] = {1, 63, 64, 65, 130, 1000};
    std::vector<float> x(vocabularies[pick(0, 6)]);
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = static_cast<float>(RandomNormal(2, trial, i));
      if (trial % 3 == 0) x[i] = std::round(2 * x[i]);  // many equals
    }
    const SamplingParams params = {.temperature = std::vector{0.3, 1.0, 2.5}[pick(1, 3)],
                                   .top_k = std::vector{0, 1, 50, 500}[pick(2, 4)],
                                   .top_p = std::vector{0.1, 0.6, 0.9, 0.99, 1.0}[pick(3, 5)],
                                   .min_p = std::vector{0.0, 0.01, 0.2}[pick(4, 3)],
                                   .seed = 4};
    EXPECT_EQ(Sample(x, params, {}, 5, trial), PlainSample(x, params, RandomUniform(4, 5, trial)))
        << "trial " << trial;
  }
}

TEST(SamplingParamsTest, ValuesOutOfRangeAreNamed) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(SamplingParams{}.Validate().ok());
  EXPECT_TRUE((SamplingParams{.temperature = 0, .top_p = 1e-9, .min_p = 1}.Validate().ok()));
  const auto expect_named = [](const SamplingParams& params, const std::string& text) {
    const Status status = params.Validate();
    EXPECT_EQ(status.code(), Code::kInvalid);
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
  };
  expect_named({.temperature = -0.5}, "temperature is -0.5");
  expect_named({.temperature = nan}, "temperature is nan");
  expect_named({.temperature = HUGE_VAL}, "temperature is inf");
  expect_named({.top_k = -1}, "top_k is -1");
  expect_named({.top_p = 0}, "top_p is 0");
  expect_named({.top_p = 1.5}, "top_p is 1.5");
  expect_named({.top_p = nan}, "top_p is nan");
  expect_named({.min_p = -0.1}, "min_p is -0.1");
  expect_named({.min_p = 1.1}, "min_p is 1.1");
  expect_named({.repetition_penalty = 0}, "repetition_penalty is 0");
  expect_named({.repetition_penalty = nan}, "repetition_penalty is nan");
}

TEST(LogprobsTest, LogSumExpIsExactInDouble) {
  EXPECT_DOUBLE_EQ(LogSumExp(std::vector<float>{0, 0, 0, 0}), std::log(4.0));
  EXPECT_DOUBLE_EQ(LogSumExp(std::vector<float>{3e38f, -3e38f}), static_cast<double>(3e38f));
  EXPECT_DOUBLE_EQ(LogSumExp(std::vector<float>{-1000, -1000}), -1000 + std::log(2.0));
  EXPECT_DOUBLE_EQ(LogSumExp(std::vector<float>{kMasked, 2}), 2.0);
  EXPECT_EQ(LogSumExp(std::vector<float>{kMasked}), -HUGE_VAL);
}

TEST(LogprobsTest, BestComeFirstEqualsByIdAndMaskedNever) {
  // Shares 1/4, 1/2, masked, 1/4 of logits 0, ln 2, -, 0.
  const std::vector<float> x = {0.f, std::log(2.f), kMasked, 0.f};
  const auto top = TopLogprobs(x, 10);
  ASSERT_EQ(top.size(), 3u);
  EXPECT_EQ(top[0].id, 1);
  EXPECT_NEAR(top[0].logprob, -std::log(2.0), 1e-7);
  EXPECT_EQ(top[1].id, 0);
  EXPECT_NEAR(top[1].logprob, -std::log(4.0), 1e-7);
  EXPECT_EQ(top[2].id, 3);
  EXPECT_EQ(top[2].logprob, top[1].logprob);
  EXPECT_EQ(TopLogprobs(x, 1), std::vector<TokenLogprob>{top[0]});
  EXPECT_TRUE(TopLogprobs(x, 0).empty());
  EXPECT_TRUE(TopLogprobs(std::vector<float>{kMasked}, 3).empty());
}

}  // namespace
}  // namespace mm01
