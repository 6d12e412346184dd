// Rotary positions against long double, up to position 10,000,000.
#include "kernels/rope/rope.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <iterator>
#include <numbers>
#include <vector>

#include "kernels/rope/rope_cases.h"
#include "kernels/rope/rope_ref.h"
#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/poison.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

struct Table {
  int64_t rows, half;
  PoisonedVector<float> cos, sin;

  Table(Queue& queue, const std::vector<int64_t>& position, double theta, int64_t rotary)
      : rows(std::ssize(position)), half(rotary / 2), cos(rows * half), sin(rows * half) {
    RopeTable(queue, Tensor(position.data(), {rows}), theta, Cos(), Sin());
  }
  Tensor Cos() { return Tensor(cos.data(), {rows, half}); }
  Tensor Sin() { return Tensor(sin.data(), {rows, half}); }
};

const std::vector<int64_t> kPositions(std::begin(kRopePositions), std::end(kRopePositions));

TEST(RopeTest, FrequenciesAreThoseOfTheReleasedModel) {
  // theta 1e7, 64 rotary dims: 10^(-7 * 2j / 64). Where angles are small, the sine is the angle.
  Queue queue(1);
  const Table one(queue, {1}, 1e7, 64);
  EXPECT_NEAR(one.cos[0], std::cos(1.0), 4e-8);
  EXPECT_NEAR(one.sin[0], std::sin(1.0), 4e-8);
  EXPECT_NEAR(one.sin[1], std::sin(0.6042963902), 4e-8);
  EXPECT_NEAR(one.sin[31], 1.654817e-07, 1e-13);
  EXPECT_FLOAT_EQ(ReferenceFrequency(1e7, 1, 64), 0.6042963902f);
  EXPECT_NEAR(ReferenceFrequency(1e7, 31, 64), 1.6548e-07, 1e-11);
  EXPECT_FLOAT_EQ(ReferenceFrequency(1e7, 16, 64), 3.16227766e-4f);  // 10^-3.5
}

TEST(RopeTest, AnglesAreAsAccurateAtTenMillionAsAtTen) {
  Queue queue(2);
  for (const RopeCase& c : kRopeCases) {
    SCOPED_TRACE(c.name);
    const Table table(queue, kPositions, c.theta, c.rotary);
    for (size_t r = 0; r < kPositions.size(); ++r) {
      for (int64_t j = 0; j < c.rotary / 2; ++j) {
        const long double angle = ReferenceAngle(kPositions[r], c.theta, j, c.rotary);
        // Half a unit in the last place of a number below 1.
        EXPECT_NEAR(table.cos[r * c.rotary / 2 + j], std::cos(angle), 3.1e-8) << kPositions[r];
        EXPECT_NEAR(table.sin[r * c.rotary / 2 + j], std::sin(angle), 3.1e-8) << kPositions[r];
      }
    }
  }
}

TEST(RopeTest, AgreesWithTheDoubleReference) {
  Queue queue(2);
  for (const RopeCase& c : kRopeCases) {
    SCOPED_TRACE(c.name);
    const int64_t rows = std::ssize(kPositions);
    Table table(queue, kPositions, c.theta, c.rotary);
    Floats x = RandomFloats(1, rows * c.heads * c.dim);
    std::vector<double> want;
    for (int64_t i = 0; i < rows * c.heads; ++i) {
      const auto head = ReferenceRope(std::span(x).subspan(i * c.dim, c.dim),
                                      kPositions[i / c.heads], c.theta, c.rotary);
      want.insert(want.end(), head.begin(), head.end());
    }
    Rope(queue, Tensor(x.data(), {rows, c.heads, c.dim}), table.Cos(), table.Sin());
    EXPECT_LE(RelativeError(x, want), 1e-7);
  }
}

TEST(RopeTest, HalvesTurnAgainstEachOtherAndTheRestStays) {
  // A quarter turn takes (a, b) to (-b, a): pairs are (0, 2) and (1, 3).
  Queue queue(1);
  Floats x = {1, 2, 3, 4, 5, 6};
  const Floats cos = {0, 1}, sin = {1, 0};
  Rope(queue, Tensor(x.data(), {1, 1, 6}), Tensor(cos.data(), {1, 2}), Tensor(sin.data(), {1, 2}));
  EXPECT_TRUE(SameBits(x, Floats{-3, 2, 1, 4, 5, 6}));
}

TEST(RopeTest, PositionZeroChangesNothing) {
  Queue queue(1);
  Table table(queue, {0, 0}, 1e7, 64);
  Floats x = RandomFloats(2, 2 * 128);
  const Floats before = x;
  Rope(queue, Tensor(x.data(), {2, 1, 128}), table.Cos(), table.Sin());
  EXPECT_TRUE(SameBits(x, before));
}

TEST(RopeTest, RowsHeadsAndThreadsDoNotChangeABit) {
  constexpr int64_t kHeads = 2, kDim = 32, kRotary = 16;
  const int64_t rows = std::ssize(kPositions);
  const Floats x = RandomFloats(3, rows * kHeads * kDim);
  Queue one(1), three(3);
  Floats alone = x;
  for (int64_t r = 0; r < rows; ++r) {
    Table table(one, {kPositions[r]}, 1e6, kRotary);
    Rope(one, Tensor(alone.data() + r * kHeads * kDim, {1, kHeads, kDim}), table.Cos(),
         table.Sin());
  }
  for (Queue* queue : {&one, &three}) {
    Floats all = x;
    Table table(*queue, kPositions, 1e6, kRotary);
    Rope(*queue, Tensor(all.data(), {rows, kHeads, kDim}), table.Cos(), table.Sin());
    EXPECT_TRUE(SameBits(all, alone));
  }
}

TEST(RopeTest, HeadsMayBePartsOfAFusedProjection) {
  // q and k of rows [q 2 heads, k 1 head, v 1 head]; v must stay as it is.
  Queue queue(1);
  constexpr int64_t kDim = 16, kRows = 5;
  const Floats x = RandomFloats(4, kRows * 4 * kDim);
  Table table(queue, {7, 8, 9, 10, 11}, 1e4, 8);
  Floats fused = x, plain = x;
  for (const auto& [first, heads] : {std::array<int64_t, 2>{0, 2}, {2, 1}}) {
    Tensor part(fused.data() + first * kDim, {kRows, heads, kDim});
    part.stride[0] = 4 * kDim;
    Rope(queue, part, table.Cos(), table.Sin());
  }
  Rope(queue, Tensor(plain.data(), {kRows, 4, kDim}), table.Cos(), table.Sin());
  for (int64_t i = 0; i < std::ssize(x); ++i) {
    EXPECT_EQ(fused[i], i / kDim % 4 == 3 ? x[i] : plain[i]);
  }
}

TEST(RopeTest, ShapesThatDisagreeAreABug) {
  Queue queue(1);
  Table table(queue, {1, 2}, 1e4, 16);
  Floats x(64);
  EXPECT_THROW(Rope(queue, Tensor(x.data(), {4, 1, 16}), table.Cos(), table.Sin()), Bug);
  EXPECT_THROW(Rope(queue, Tensor(x.data(), {2, 4, 8}), table.Cos(), table.Sin()), Bug);
  const std::vector<int64_t> three(3);
  EXPECT_THROW(RopeTable(queue, Tensor(three.data(), {3}), 1e4, table.Cos(), table.Sin()), Bug);
}

}  // namespace
}  // namespace mm01
