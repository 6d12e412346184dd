// Routing, the way to the experts and back, and the whole mixture against its formula.
#include "kernels/moe/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <span>
#include <vector>

#include "kernels/moe/moe_cases.h"
#include "kernels/moe/moe_ref.h"
#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

Tensor Matrix(const Floats& x, int64_t width) {
  return Tensor(x.data(), {std::ssize(x) / width, width});
}

struct Choices {
  std::vector<int32_t> experts;
  Floats weights;
  int64_t k;

  Tensor Experts() const { return Tensor(experts.data(), {std::ssize(experts) / k, k}); }
  Tensor Weights() const { return Matrix(weights, k); }
};

Choices Routed(Queue& queue, const Floats& logits, int64_t num_experts, int64_t k) {
  const int64_t n = std::ssize(logits) / num_experts * k;
  Choices c{std::vector<int32_t>(n, -1), Floats(n, kNaN), k};
  Route(queue, {Matrix(logits, num_experts), c.Experts(), c.Weights()});
  return c;
}

// Experts with float32 weights, and those weights for the reference.
struct Mixture {
  int64_t width, inner;
  std::vector<Floats> w1, w2, w3;
  std::vector<ExpertWeights> experts;

  Mixture(int64_t num_experts, int64_t d, int64_t f, WeightType type = {}) : width(d), inner(f) {
    const auto add = [&](int64_t e, uint64_t which, int64_t n, int64_t k,
                         std::vector<Floats>& all) {
      all.push_back(RandomFloats(100 + 3 * static_cast<uint64_t>(e) + which, n * k));
      Weight w(type, n, k);
      for (int64_t i = 0; i < n; ++i) w.SetRow(i, std::span(all.back()).subspan(i * k, k));
      return w;
    };
    for (int64_t e = 0; e < num_experts; ++e) {
      Weight a = add(e, 0, f, d, w1), b = add(e, 1, d, f, w2), c = add(e, 2, f, d, w3);
      experts.push_back({std::move(a), std::move(b), std::move(c)});
    }
  }
};

// All four calls: y [T, D].
Floats Mixed(Queue& queue, const Mixture& m, const Floats& x, const Floats& logits, int64_t k) {
  const int64_t num_experts = std::ssize(m.experts);
  const Choices c = Routed(queue, logits, num_experts, k);
  const Dispatch d = MakeDispatch(c.Experts(), c.Weights(), num_experts);
  PoisonedVector<float> in(d.num_rows() * m.width), out(d.num_rows() * m.width), y(x.size());
  const Tensor rows(in.data(), {d.num_rows(), m.width}), done(out.data(), {d.num_rows(), m.width});
  GatherRows(queue, Matrix(x, m.width), d.token, rows);
  Experts(queue, {rows, d.offset, m.experts, done});
  Combine(queue, d, done, Tensor(y.data(), {std::ssize(x) / m.width, m.width}));
  return {y.begin(), y.end()};
}

TEST(RouteTest, GivesWhatWasWorkedByHand) {
  Queue queue(1);
  // e^log 3 : e^0 = 3 : 1, and equals: the lower expert first, half each.
  const float l3 = std::log(3.0f);
  const Choices c = Routed(queue, {-5, 0, l3, -1, /**/ 2, 7, 7, 7, /**/ 0, 0, 0, 0}, 4, 2);
  EXPECT_EQ(c.experts, (std::vector<int32_t>{2, 1, 1, 2, 0, 1}));
  ExpectAllNear(c.weights, Floats{0.75f, 0.25f, 0.5f, 0.5f, 0.5f, 0.5f}, 1e-7);
}

TEST(RouteTest, EqualsTheSoftmaxOverAllKeptAndRenormalised) {
  Queue queue(2);
  for (const MoeCase& c : kMoeCases) {
    SCOPED_TRACE(c.name);
    const Floats logits = RandomFloats(1, c.tokens * c.experts);
    const Choices got = Routed(queue, logits, c.experts, c.k);
    for (int64_t t = 0; t < c.tokens; ++t) {
      const auto want = RouteByFormula(std::span(logits).subspan(t * c.experts, c.experts), c.k);
      for (int64_t i = 0; i < c.k; ++i) {
        EXPECT_EQ(got.experts[t * c.k + i], want.experts[i]);
        EXPECT_NEAR(got.weights[t * c.k + i], want.weights[i], 6e-8);
      }
    }
  }
}

TEST(RouteTest, LogitsFarApartGiveOneExpertEverything) {
  Queue queue(1);
  const Choices c = Routed(queue, {-1e30f, 3e38f, 1000, -3e38f}, 4, 2);
  EXPECT_EQ(c.experts, (std::vector<int32_t>{1, 2}));
  EXPECT_TRUE(SameBits(c.weights, Floats{1, 0}));
}

TEST(DispatchTest, SortsRowsByExpertAndKeepsTheOrderOfTokens) {
  // Tokens choose (2, 0), (2, 3), (0, 2): expert 0 has tokens 0, 2; 1 none; 2 has 0, 1, 2; 3 has 1.
  const Choices c{{2, 0, 2, 3, 0, 2}, {0.9f, 0.1f, 0.8f, 0.2f, 0.7f, 0.3f}, 2};
  const Dispatch d = MakeDispatch(c.Experts(), c.Weights(), 4);
  EXPECT_EQ(d.offset, (std::vector<int64_t>{0, 2, 2, 5, 6}));
  EXPECT_EQ(d.token, (std::vector<int64_t>{0, 2, 0, 1, 2, 1}));
  // By ascending expert: token 0 is rows 0 (expert 0) and 2 (expert 2).
  EXPECT_EQ(d.row, (std::vector<int64_t>{0, 2, 3, 5, 1, 4}));
  EXPECT_TRUE(SameBits(d.weight, Floats{0.1f, 0.9f, 0.8f, 0.2f, 0.7f, 0.3f}));
}

TEST(DispatchTest, CombiningWhatWasGatheredGivesTheTokensBack) {
  Queue queue(3);
  constexpr int64_t kTokens = 50, kWidth = 19;
  const Floats x = RandomFloats(2, kTokens * kWidth);
  Choices c = Routed(queue, RandomFloats(3, kTokens * 8), 8, 2);
  for (size_t i = 0; i < c.weights.size(); ++i) c.weights[i] = i % 2 ? 0.25f : 0.75f;
  const Dispatch d = MakeDispatch(c.Experts(), c.Weights(), 8);
  EXPECT_EQ(std::set<int64_t>(d.row.begin(), d.row.end()).size(), static_cast<size_t>(2 * kTokens));
  PoisonedVector<float> rows(d.num_rows() * kWidth), y(x.size());
  const Tensor gathered(rows.data(), {d.num_rows(), kWidth});
  GatherRows(queue, Matrix(x, kWidth), d.token, gathered);
  Combine(queue, d, gathered, Tensor(y.data(), {kTokens, kWidth}));
  EXPECT_LE(RelativeError(y, x), 1e-7);
}

TEST(MoeTest, AgreesWithTheFormula) {
  Queue queue(2);
  for (const MoeCase& c : kMoeCases) {
    SCOPED_TRACE(c.name);
    const Mixture m(c.experts, c.width, c.inner);
    const Floats x = RandomFloats(4, c.tokens * c.width),
                 logits = RandomFloats(5, c.tokens * c.experts);
    std::vector<double> want(x.size(), 0.0);
    for (int64_t t = 0; t < c.tokens; ++t) {
      const auto route = RouteByFormula(std::span(logits).subspan(t * c.experts, c.experts), c.k);
      for (int64_t i = 0; i < c.k; ++i) {
        const int32_t e = route.experts[i];
        const auto row =
            ReferenceExpert(std::span(x).subspan(t * c.width, c.width), m.w1[e], m.w2[e], m.w3[e]);
        for (int64_t j = 0; j < c.width; ++j) want[t * c.width + j] += route.weights[i] * row[j];
      }
    }
    OnEverySimdTarget(
        [&] { EXPECT_LE(RelativeError(Mixed(queue, m, x, logits, c.k), want), 1e-6); });
  }
}

TEST(MoeTest, ATokenHasTheSameBitsAloneAndAmongOthersOnAnyNumberOfThreads) {
  constexpr int64_t kTokens = 60, kExperts = 5, kWidth = 40;
  const Floats x = RandomFloats(6, kTokens * kWidth), logits = RandomFloats(7, kTokens * kExperts);
  Queue one(1), two(2), three(3);
  for (const WeightType& type :
       {WeightType{}, WeightType{DType::kBF16}, WeightType{DType::kI8, 32}}) {
    const Mixture m(kExperts, kWidth, 70, type);
    Floats alone;
    for (int64_t t = 0; t < kTokens; ++t) {
      const auto row = x.begin() + t * kWidth, logit = logits.begin() + t * kExperts;
      const Floats y = Mixed(one, m, {row, row + kWidth}, {logit, logit + kExperts}, 2);
      alone.insert(alone.end(), y.begin(), y.end());
    }
    for (Queue* queue : {&one, &two, &three}) {
      EXPECT_TRUE(SameBits(Mixed(*queue, m, x, logits, 2), alone)) << ToString(type.dtype);
    }
  }
}

TEST(MoeTest, ExpertsWithoutRowsAreLeftOut) {
  Queue queue(1);
  const Mixture m(4, 16, 32);
  const Floats x = RandomFloats(8, 3 * 16);
  PoisonedVector<float> out(3 * 16);
  const Tensor rows(out.data(), {3, 16});
  const std::vector<int64_t> offset = {0, 0, 3, 3, 3}, none = {0, 0, 0, 0, 0};
  Experts(queue, {Matrix(x, 16), offset, m.experts, rows});
  std::vector<double> want;
  for (int64_t t = 0; t < 3; ++t) {
    const auto row = ReferenceExpert(std::span(x).subspan(t * 16, 16), m.w1[1], m.w2[1], m.w3[1]);
    want.insert(want.end(), row.begin(), row.end());
  }
  EXPECT_LE(RelativeError(out, want), 1e-6);
  Experts(queue, {Matrix(x, 16).Rows(0, 0), none, m.experts, rows.Rows(0, 0)});
}

TEST(MoeTest, ShapesThatDisagreeAreABug) {
  Queue queue(1);
  const Floats logits(8), x(32);
  Choices c{std::vector<int32_t>(4), Floats(4), 2};
  EXPECT_THROW(Route(queue, {Matrix(logits, 2), c.Experts(), c.Weights()}), Bug);
  EXPECT_THROW(Route(queue, {Matrix(logits, 4), c.Experts(), Matrix(c.weights, 1)}), Bug);
  EXPECT_THROW(Routed(queue, logits, 4, 5), Bug) << "five of four experts";
  const Dispatch d = MakeDispatch(Choices{{0, 1, 1, 0}, Floats(4), 2}.Experts(), c.Weights(), 2);
  EXPECT_THROW(GatherRows(queue, Matrix(x, 16), d.token, Matrix(x, 16)), Bug);
  EXPECT_THROW(Combine(queue, d, Matrix(x, 16), Matrix(x, 16)), Bug);
  const Mixture m(2, 16, 16);
  EXPECT_THROW(
      Experts(queue, {Matrix(x, 16), std::vector<int64_t>{0, 1}, m.experts, Matrix(x, 16)}), Bug);
  EXPECT_THROW(
      Experts(queue, {Matrix(x, 16), std::vector<int64_t>{0, 1, 3}, m.experts, Matrix(x, 16)}),
      Bug);
}

TEST(MoeTest, ScratchIsTakenOnce) {
  Queue queue(2);
  const Mixture m(4, 64, 256);
  const Floats x = RandomFloats(9, 300 * 64), logits = RandomFloats(10, 300 * 4);
  Mixed(queue, m, x, logits, 2);
  const int64_t bytes = queue.scratch_bytes();
  for (int i = 0; i < 3; ++i) Mixed(queue, m, x, logits, 2);
  EXPECT_EQ(queue.scratch_bytes(), bytes);
}

}  // namespace
}  // namespace mm01
