// The pointwise functions against their formulas in double.
#include "kernels/activation/activation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/activation/activation_cases.h"
#include "kernels/activation/activation_ref.h"
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
Floats SiluOf(Queue& queue, Floats x, int64_t width) {
  Silu(queue, Matrix(x, width));
  return x;
}
Floats SwiGluOf(Queue& queue, Floats gate, const Floats& up, int64_t width) {
  SwiGlu(queue, Matrix(gate, width), Matrix(up, width));
  return gate;
}
Floats BlendOf(Queue& queue, Floats x, const Floats& shared, const Floats& logit) {
  const int64_t width = std::ssize(x) / std::ssize(logit);
  BlendShared(queue, Matrix(x, width), Matrix(shared, width), Matrix(logit, 1));
  return x;
}

TEST(ActivationTest, GivesWhatWasWorkedByHand) {
  Queue queue(1);
  // sigmoid(1) = 0.7310585786, sigmoid(2) = 0.8807970780.
  const Floats silu = SiluOf(queue, {0, 1, -1, 2}, 4);
  ExpectAllNear(silu, Floats{0, 0.7310585786f, -0.2689414214f, 1.761594156f}, 2e-7);
  ExpectAllNear(SwiGluOf(queue, {0, 1, -1, 2}, {9, 2, 10, -1}, 2),
                Floats{0, 1.462117157f, -2.689414214f, -1.761594156f}, 5e-7);
  // A logit of 0 is half and half, log 3 is 1/4 and 3/4.
  ExpectAllNear(BlendOf(queue, {2, 4, 2, 4}, {6, 0, 6, 0}, {0, std::log(3.0f)}), Floats{4, 2, 5, 1},
                1e-6);
}

TEST(ActivationTest, AgreesWithTheDoubleReference) {
  Queue queue(2);
  for (const ActivationCase& c : kActivationCases) {
    const int64_t n = c.rows * c.width;
    Floats x = RandomFloats(1, n);
    for (float& v : x) v *= 4.0f;
    const Floats y = RandomFloats(2, n), logit = RandomFloats(3, c.rows);
    std::vector<double> silu, glu, blend;
    for (int64_t i = 0; i < n; ++i) {
      silu.push_back(ReferenceSilu(x[i]));
      glu.push_back(ReferenceSwiGlu(x[i], y[i]));
      blend.push_back(ReferenceBlend(x[i], y[i], logit[i / c.width]));
    }
    OnEverySimdTarget([&] {
      EXPECT_LE(RelativeError(SiluOf(queue, x, c.width), silu), 2e-7);
      EXPECT_LE(RelativeError(SwiGluOf(queue, x, y, c.width), glu), 3e-7);
      EXPECT_LE(RelativeError(BlendOf(queue, x, y, logit), blend), 3e-7);
    });
  }
}

TEST(ActivationTest, EveryNumberIsNearItsOwnReference) {
  Queue queue(1);
  Floats x;
  for (int i = -8000; i <= 8000; ++i) x.push_back(static_cast<float>(i) * 0.01f);
  OnEverySimdTarget([&] {
    const Floats got = SiluOf(queue, x, std::ssize(x));
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = ReferenceSilu(x[i]);
      ASSERT_NEAR(got[i], want, 5e-7 * std::abs(want)) << "at " << x[i];
    }
  });
}

TEST(ActivationTest, LargeNumbersNeitherOverflowNorTurnToNaN) {
  Queue queue(1);
  const Floats x = {88,    89,     104,   1000,   1e30f, -88,   -89, -104,
                    -1000, -1e30f, 3e38f, -3e38f, 0,     -0.0f, 1,   2};
  OnEverySimdTarget([&] {
    const Floats got = SiluOf(queue, x, 16);
    for (size_t i = 0; i < 16; ++i) {
      if (x[i] > 80) {
        EXPECT_EQ(got[i], x[i]);
      } else if (x[i] < -80) {
        EXPECT_LE(std::abs(got[i]), 1e-38 * std::abs(static_cast<double>(x[i]))) << x[i];
      }
    }
    ExpectAllNear(BlendOf(queue, {1, 1}, {2, 2}, {1000, -1000}), Floats{2, 1}, 1e-7);
  });
}

TEST(ActivationTest, ANumberHasTheSameBitsWhereverItStandsAndOnAnyNumberOfThreads) {
  constexpr int64_t kRows = 1200, kWidth = 75;
  const Floats x = RandomFloats(4, kRows * kWidth), y = RandomFloats(5, kRows * kWidth);
  Queue one(1), two(2), three(3);
  const Floats silu = SiluOf(one, x, 1), glu = SwiGluOf(one, x, y, 1);
  for (Queue* queue : {&one, &two, &three}) {
    EXPECT_TRUE(SameBits(SiluOf(*queue, x, kWidth), silu));
    EXPECT_TRUE(SameBits(SwiGluOf(*queue, x, y, kWidth), glu));
    EXPECT_TRUE(SameBits(SiluOf(*queue, x, kWidth * 4), silu));
  }
}

TEST(ActivationTest, RowsMayBeStridedAndWhatLiesBetweenThemIsLeftAlone) {
  Queue queue(1);
  constexpr int64_t kRows = 3, kWidth = 19, kWide = 40;
  const Floats x = RandomFloats(6, kRows * kWidth), y = RandomFloats(7, kRows * kWidth);
  PoisonedVector<float> wide(kRows * kWide);
  Tensor gate(wide.data(), {kRows, kWidth});
  gate.stride[0] = kWide;
  for (int64_t i = 0; i < kRows * kWidth; ++i) wide[i / kWidth * kWide + i % kWidth] = x[i];
  SwiGlu(queue, gate, Matrix(y, kWidth));
  Floats got;
  for (int64_t r = 0; r < kRows; ++r) {
    got.insert(got.end(), wide.begin() + r * kWide, wide.begin() + r * kWide + kWidth);
  }
  EXPECT_TRUE(SameBits(got, SwiGluOf(queue, x, y, kWidth)));
  EXPECT_EQ(wide.NumUnwritten(), static_cast<size_t>(kRows * (kWide - kWidth)));
}

TEST(ActivationTest, ShapesThatDisagreeAreABug) {
  Queue queue(1);
  const Floats x(12), y(12), logit(3);
  EXPECT_THROW(SwiGlu(queue, Matrix(x, 4), Matrix(y, 3)), Bug);
  EXPECT_THROW(BlendShared(queue, Matrix(x, 4), Matrix(y, 3), Matrix(logit, 1)), Bug);
  EXPECT_THROW(BlendShared(queue, Matrix(x, 3), Matrix(y, 3), Matrix(logit, 1)), Bug);
  EXPECT_THROW(Silu(queue, Tensor(x.data(), {12})), Bug);
}

}  // namespace
}  // namespace mm01
