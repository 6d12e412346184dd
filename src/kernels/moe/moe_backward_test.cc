// Routing and balance in training: forward values against the reference in double, gradients
// against finite differences of it.
#include "kernels/moe/moe_backward.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/moe/moe_backward_ref.h"
#include "testing/arrays.h"
#include "testing/gradients.h"
#include "testing/poison.h"

namespace mm01 {
namespace {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

constexpr int64_t kTokens = 30, kExperts = 5, kChoices = 2;

// A dispatch and its memory.
struct Routed {
  std::vector<int32_t> expert, row, token;
  Floats share, weight;
  TrainDispatch dispatch;

  Routed(Queue& queue, Floats& logits, int64_t capacity)
      : expert(kTokens * kChoices),
        row(expert.size()),
        token(expert.size()),
        share(expert.size()),
        weight(expert.size()) {
    dispatch = MakeTrainDispatch(queue, {.logits = Tensor(logits.data(), {kTokens, kExperts}),
                                         .room = {Tensor(expert.data(), {kTokens, kChoices}),
                                                  Tensor(share.data(), {kTokens, kChoices}),
                                                  Tensor(row.data(), {kTokens, kChoices}),
                                                  Tensor(token.data(), {kTokens * kChoices}),
                                                  Tensor(weight.data(), {kTokens * kChoices})},
                                         .capacity = capacity});
  }
  Routed(Routed&&) = delete;
};

// [T, E] as the reference has it.
Doubles GatesOf(const Routed& routed) {
  const TrainDispatch& d = routed.dispatch;
  Doubles gates(kTokens * kExperts);
  for (size_t e = 0; e < kExperts; ++e) {
    for (int64_t r = d.offset[e]; r < d.offset[e + 1]; ++r) {
      const auto row = static_cast<size_t>(r);
      gates[static_cast<size_t>(routed.token[row]) * kExperts + e] =
          static_cast<double>(routed.weight[row]);
    }
  }
  return gates;
}

TEST(MoeBackwardTest, DispatchDropsTheLastTokensOverCapacity) {
  Queue queue(2);
  Floats logits = RandomFloats(1, kTokens * kExperts);
  for (const int64_t capacity : {0, 1, 9, 1000}) {
    SCOPED_TRACE(capacity);
    MoeReference reference{kExperts, kChoices, capacity};
    std::vector<int64_t> counts;
    const Doubles gates = reference.Gates(ToDoubles(logits), counts);
    const Routed routed(queue, logits, capacity);
    const TrainDispatch& d = routed.dispatch;
    ExpectAllNear(GatesOf(routed), gates, 1e-6);
    EXPECT_EQ(d.counts, counts);
    EXPECT_EQ(d.num_rows() + d.dropped, kTokens * kChoices);
    EXPECT_EQ(d.dropped > 0, capacity == 1 || capacity == 9);
  }
}

// y_t = sum over kept rows of weight row, by hand: every row r is (r + 1, 1).
TEST(MoeBackwardTest, CombineSkipsWhatWasDropped) {
  Queue queue(2);
  Floats logits = RandomFloats(1, kTokens * kExperts);
  const Routed routed(queue, logits, 9);
  const TrainDispatch& d = routed.dispatch;
  Floats rows;
  for (int64_t r = 0; r < d.num_rows(); ++r)
    rows.insert(rows.end(), {static_cast<float>(r + 1), 1});
  const Tensor in(rows.data(), {d.num_rows(), 2});
  PoisonedVector<float> weighted(kTokens * 2), plain(kTokens * 2);
  CombineRows(queue, d, in, true, Tensor(weighted.data(), {kTokens, 2}));
  CombineRows(queue, d, in, false, Tensor(plain.data(), {kTokens, 2}));
  Doubles want_weighted(kTokens * 2), want_plain(kTokens * 2);
  for (size_t r = 0; r < static_cast<size_t>(d.num_rows()); ++r) {
    const auto t = static_cast<size_t>(routed.token[r]);
    want_weighted[2 * t] += static_cast<double>(routed.weight[r]) * static_cast<double>(r + 1);
    want_weighted[2 * t + 1] += static_cast<double>(routed.weight[r]);
    want_plain[2 * t] += static_cast<double>(r + 1);
    want_plain[2 * t + 1] += 1.0;
  }
  EXPECT_LE(RelativeError(weighted, want_weighted), 1e-6);
  EXPECT_LE(RelativeError(plain, want_plain), 1e-6);
}

TEST(MoeBackwardTest, CombineAddNormIsBoth) {
  constexpr int64_t kWidth = 24;
  Queue queue(2);
  Floats logits = RandomFloats(1, kTokens * kExperts);
  const Routed routed(queue, logits, 9);
  const int64_t n = routed.dispatch.num_rows();
  Floats rows = RandomFloats(2, n * kWidth), x = RandomFloats(3, kTokens * kWidth);
  Floats weight = RandomFloats(4, kWidth);
  PoisonedVector<float> branch(x.size()), sum(x.size()), out(x.size()), want_sum(x.size()),
      want_out(x.size());
  const Tensor in(rows.data(), {n, kWidth});
  const auto matrix = [](auto& values) { return Tensor(values.data(), {kTokens, kWidth}); };
  const auto norm = [&](auto& to_sum, auto& to_out) {
    return AddNormArgs{.x = matrix(x),
                       .branch = matrix(branch),
                       .alpha = 1.5f,
                       .beta = 0.5f,
                       .weight = Tensor(weight.data(), {kWidth}),
                       .sum = matrix(to_sum),
                       .out = matrix(to_out)};
  };
  CombineAddNorm(queue, routed.dispatch, in, norm(sum, out));
  CombineRows(queue, routed.dispatch, in, true, matrix(branch));
  AddNorm(queue, norm(want_sum, want_out));
  EXPECT_TRUE(SameBits(sum, want_sum));
  EXPECT_TRUE(SameBits(out, want_out));
}

// y_t = sum over kept rows of them + sum over e of d_te w_e.
TEST(MoeBackwardTest, GradientsOfRowsAndOfTheRouterAddUp) {
  constexpr int64_t kWidth = 6;
  Queue queue(2);
  Floats logits = RandomFloats(1, kTokens * kExperts);
  const Routed routed(queue, logits, 9);
  const TrainDispatch& d = routed.dispatch;
  Floats rows = RandomFloats(2, d.num_rows() * kWidth), router = RandomFloats(3, kExperts * kWidth);
  Floats d_logits = RandomFloats(4, kTokens * kExperts);
  PoisonedVector<float> d_x(kTokens * kWidth);
  CombineGradients(queue, d,
                   {.rows = Tensor(rows.data(), {d.num_rows(), kWidth}),
                    .d_logits = Tensor(d_logits.data(), {kTokens, kExperts}),
                    .router = Tensor(router.data(), {kExperts, kWidth}),
                    .d_x = Tensor(d_x.data(), {kTokens, kWidth})});
  Doubles want(kTokens * kWidth);
  for (size_t j = 0; j < kWidth; ++j) {
    for (size_t r = 0; r < static_cast<size_t>(d.num_rows()); ++r) {
      want[static_cast<size_t>(routed.token[r]) * kWidth + j] +=
          static_cast<double>(rows[r * kWidth + j]);
    }
    for (size_t i = 0; i < kTokens * kExperts; ++i) {
      want[i / kExperts * kWidth + j] +=
          static_cast<double>(d_logits[i]) * static_cast<double>(router[i % kExperts * kWidth + j]);
    }
  }
  EXPECT_LE(RelativeError(d_x, want), 1e-6);
}

TEST(MoeBackwardTest, RouteBackwardFollowsFiniteDifferences) {
  Queue queue(2);
  Floats logits = RandomFloats(1, kTokens * kExperts);
  for (const int64_t capacity : {0, 9}) {
    const Routed routed(queue, logits, capacity);
    const TrainDispatch& d = routed.dispatch;
    // The loss weighs the share of token t in expert e.
    const Doubles d_gates = ToDoubles(RandomFloats(2, kTokens * kExperts));
    Floats weighted;
    for (size_t e = 0; e < kExperts; ++e) {
      for (int64_t r = d.offset[e]; r < d.offset[e + 1]; ++r) {
        const auto i = static_cast<size_t>(r), t = static_cast<size_t>(routed.token[i]);
        weighted.push_back(routed.weight[i] * static_cast<float>(d_gates[t * kExperts + e]));
      }
    }
    PoisonedVector<float> d_logits(kTokens * kExperts);
    RouteBackward(queue, d, Tensor(weighted.data(), {d.num_rows()}),
                  Tensor(d_logits.data(), {kTokens, kExperts}));
    MoeReference reference{kExperts, kChoices, capacity};
    Doubles x = ToDoubles(logits);
    std::vector<int64_t> counts;
    ExpectGradient([&] { return Dot(reference.Gates(x, counts), d_gates); }, x,
                   Doubles(d_logits.begin(), d_logits.end()), 1e-6);
  }
}

TEST(MoeBackwardTest, BalanceFollowsItsFormulas) {
  Queue queue(2);
  constexpr double kScale = 0.3;
  MoeReference reference{kExperts, kChoices, 0};
  for (const AuxiliaryForm form : {AuxiliaryForm::kPaper, AuxiliaryForm::kTransformers}) {
    std::vector<Floats> logits = {RandomFloats(1, kTokens * kExperts),
                                  RandomFloats(2, kTokens * kExperts)};
    std::vector<Doubles> x;
    std::vector<std::vector<int64_t>> counts;
    Balance balance(form, kExperts);
    for (Floats& layer : logits) {
      const Routed routed(queue, layer, 0);
      balance.AddLayer(routed.dispatch);
      x.push_back(ToDoubles(layer));
      counts.push_back(routed.dispatch.counts);
    }
    const auto loss = [&] {
      return form == AuxiliaryForm::kPaper ? reference.Paper(x, counts)
                                           : reference.Transformers(x, counts);
    };
    EXPECT_NEAR(balance.Loss(), loss(), 1e-12);
    for (size_t l = 0; l < logits.size(); ++l) {
      Floats d_logits(kTokens * kExperts);
      BalanceBackward(queue, Tensor(logits[l].data(), {kTokens, kExperts}),
                      balance.Weights(static_cast<int64_t>(l)), kScale,
                      Tensor(d_logits.data(), {kTokens, kExperts}));
      Doubles gradient;
      for (const float d : d_logits) gradient.push_back(static_cast<double>(d) / kScale);
      ExpectGradient(loss, x[l], gradient, 1e-6);
    }
  }
}

// Even use of E experts by k choices: E k (1/E)(1/E) E = k, and in the paper's form k / E^2.
TEST(MoeBackwardTest, BalancedLossByHand) {
  Queue queue(1);
  Floats logits;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t e = 0; e < kExperts; ++e) {
      logits.push_back(e == t % kExperts || e == (t + 1) % kExperts ? 1e-5f : 0.0f);
    }
  }
  const Routed routed(queue, logits, 0);
  for (const AuxiliaryForm form : {AuxiliaryForm::kPaper, AuxiliaryForm::kTransformers}) {
    Balance balance(form, kExperts);
    balance.AddLayer(routed.dispatch);
    EXPECT_NEAR(balance.Loss(), form == AuxiliaryForm::kPaper ? 2.0 / 25.0 : 2.0, 1e-9);
  }
}

}  // namespace
}  // namespace mm01
