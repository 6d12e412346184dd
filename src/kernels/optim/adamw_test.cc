#include "kernels/optim/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

Tensor Flat(Floats& x) {
  return Tensor(x.data(), {std::ssize(x)});
}

// One step from zero moments moves by the learning rate, whatever the gradient, and by the decay:
// 2 - 0.1 * 3 / (3 + 0) - 0.1 * 0.5 * 2 = 1.8.
TEST(AdamW, FirstStepByHand) {
  Queue queue(1);
  Floats value = {2.0f, 2.0f}, gradient = {3.0f, -6.0f}, m(2), v(2);
  AdamW(queue, {.value = Flat(value),
                .gradient = Flat(gradient),
                .m = Flat(m),
                .v = Flat(v),
                .learning_rate = 0.1,
                .beta1 = 0.9,
                .beta2 = 0.95,
                .eps = 0.0,
                .weight_decay = 0.5});
  EXPECT_NEAR(value[0], 1.8, 1e-6);
  EXPECT_NEAR(value[1], 2.0, 1e-6);
  EXPECT_NEAR(m[0], 0.3, 1e-6);
  EXPECT_NEAR(v[0], 0.45, 1e-6);
}

TEST(AdamW, FollowsTheFormulaInDouble) {
  constexpr int64_t kN = 20'011;
  OnEverySimdTarget([&] {
    Queue queue(3);
    Floats value = RandomFloats(1, kN), m(kN), v(kN);
    std::vector<double> want(value.begin(), value.end()), wm(kN), wv(kN);
    for (int64_t step = 1; step <= 5; ++step) {
      Floats gradient = RandomFloats(static_cast<uint64_t>(10 + step), kN);
      const AdamWArgs a{.value = Flat(value),
                        .gradient = Flat(gradient),
                        .m = Flat(m),
                        .v = Flat(v),
                        .learning_rate = 1e-2,
                        .weight_decay = 0.1,
                        .step = step,
                        .gradient_scale = 0.5};
      AdamW(queue, a);
      for (size_t i = 0; i < want.size(); ++i) {
        const double g = 0.5 * static_cast<double>(gradient[i]);
        wm[i] = a.beta1 * wm[i] + (1 - a.beta1) * g;
        wv[i] = a.beta2 * wv[i] + (1 - a.beta2) * g * g;
        const double s = static_cast<double>(step);
        const double up = wm[i] / (1 - std::pow(a.beta1, s));
        const double root = std::sqrt(wv[i] / (1 - std::pow(a.beta2, s)));
        want[i] -= a.learning_rate * (up / (root + a.eps) + a.weight_decay * want[i]);
      }
    }
    EXPECT_LE(RelativeError(value, want), 1e-6);
    EXPECT_LE(RelativeError(m, wm), 1e-6);
    EXPECT_LE(RelativeError(v, wv), 1e-6);
  });
}

TEST(AdamW, ThreadsDoNotChangeBits) {
  const auto run = [](int threads) {
    Queue queue(threads);
    Floats value = RandomFloats(1, 50'001), gradient = RandomFloats(2, 50'001);
    Floats m(value.size()), v(value.size());
    AdamW(queue, {.value = Flat(value),
                  .gradient = Flat(gradient),
                  .m = Flat(m),
                  .v = Flat(v),
                  .learning_rate = 1e-3});
    const double sum = SumOfSquaresOf(queue, Flat(gradient));
    return std::pair(value, sum);
  };
  const auto one = run(1), three = run(3);
  EXPECT_TRUE(SameBits(three.first, one.first));
  EXPECT_EQ(three.second, one.second);
}

TEST(SumOfSquaresOf, AddsInDouble) {
  Queue queue(2);
  Floats x(100'000, 1e-4f);
  x[70'000] = 1e4f;  // float32 would lose the others beside this one
  const double small = static_cast<double>(1e-4f);
  EXPECT_NEAR(SumOfSquaresOf(queue, Flat(x)), 1e8 + 99'999 * small * small, 1e-4);
  Floats none;
  EXPECT_EQ(SumOfSquaresOf(queue, Flat(none)), 0.0);
}

TEST(AdamW, ManyTensorsAreTheSameAsEach) {
  Queue queue(2);
  Floats all = RandomFloats(1, 50), gradient = RandomFloats(2, 50), m(50), v(50);
  Floats one_by_one = all, m1 = m, v1 = v;
  const auto part = [](Floats& x, int64_t begin, int64_t end) {
    return Tensor(x.data() + begin, {end - begin});
  };
  const auto args = [&](Floats& value, Floats& first, Floats& second, int64_t begin, int64_t end) {
    return AdamWArgs{.value = part(value, begin, end),
                     .gradient = part(gradient, begin, end),
                     .m = part(first, begin, end),
                     .v = part(second, begin, end),
                     .learning_rate = 0.1};
  };
  AdamWMany(queue, std::vector{args(all, m, v, 0, 7), args(all, m, v, 7, 50)});
  AdamW(queue, args(one_by_one, m1, v1, 0, 7));
  AdamW(queue, args(one_by_one, m1, v1, 7, 50));
  EXPECT_TRUE(SameBits(all, one_by_one));
  const std::vector<Tensor> parts = {part(gradient, 0, 7), part(gradient, 7, 50)};
  EXPECT_EQ(SumOfSquaresOfMany(queue, parts),
            SumOfSquaresOf(queue, parts[0]) + SumOfSquaresOf(queue, parts[1]));
}

}  // namespace
}  // namespace mm01
