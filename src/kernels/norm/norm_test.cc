// The norms and residuals against their formulas in double.
#include "kernels/norm/norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/norm/norm_cases.h"
#include "kernels/norm/norm_ref.h"
#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

constexpr float kAlpha = 3.5565588f, kBeta = 0.75f;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

Tensor Matrix(const Floats& x, int64_t width) {
  return Tensor(x.data(), {std::ssize(x) / width, width});
}
Tensor Row(const Floats& x) {
  return Tensor(x.data(), {std::ssize(x)});
}

template <typename F>
Doubles ByRow(const Doubles& x, int64_t width, F&& fn) {
  Doubles out;
  for (int64_t at = 0; at < std::ssize(x); at += width) {
    const Doubles row = fn(std::span(x).subspan(at, width), at);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

struct SumAndNorm {
  Floats sum, out;
};

SumAndNorm AddAndNorm(Queue& queue, const Floats& x, const Floats& branch, const Floats& weight) {
  const int64_t width = std::ssize(weight), rows = std::ssize(x) / width;
  PoisonedVector<float> sum(x.size()), out(x.size());
  AddNorm(queue, {.x = Matrix(x, width),
                  .branch = Matrix(branch, width),
                  .alpha = kAlpha,
                  .beta = kBeta,
                  .weight = Row(weight),
                  .sum = Tensor(sum.data(), {rows, width}),
                  .out = Tensor(out.data(), {rows, width})});
  return {{sum.begin(), sum.end()}, {out.begin(), out.end()}};
}

Floats Gated(Queue& queue, const Floats& x, const Floats& gate, const Floats& weight,
             const Floats& squares, int64_t whole_width) {
  const int64_t width = std::ssize(weight), rows = std::ssize(x) / width;
  PoisonedVector<float> out(x.size());
  GatedNorm(queue, {.x = Matrix(x, width),
                    .gate = Matrix(gate, width),
                    .weight = Row(weight),
                    .squares = Row(squares),
                    .width = whole_width,
                    .out = Tensor(out.data(), {rows, width})});
  return {out.begin(), out.end()};
}

Floats Squares(Queue& queue, const Floats& x, int64_t width) {
  PoisonedVector<float> out(x.size() / width);
  SumOfSquares(queue, Matrix(x, width), Tensor(out.data(), {std::ssize(x) / width}));
  return {out.begin(), out.end()};
}

TEST(NormTest, GivesWhatWasWorkedByHand) {
  Queue queue(1);
  // mean(3^2, 4^2) = 12.5; 3 / sqrt(12.5) = 0.848528137, twice 4 / sqrt(12.5) = 2.262741700.
  const Floats x = {3, 4}, weight = {1, 2};
  Floats sum(2), out(2);
  AddNormArgs args{.x = Matrix(x, 2),
                   .weight = Row(weight),
                   .eps = 0,
                   .sum = Matrix(sum, 2),
                   .out = Matrix(out, 2)};
  AddNorm(queue, args);
  EXPECT_TRUE(SameBits(sum, x));
  EXPECT_NEAR(out[0], 0.848528137, 1e-7);
  EXPECT_NEAR(out[1], 2.262741700, 2e-7);
  // eps joins the mean: 3 / sqrt(12.5 + 3.5) = 3 / 4.
  args.eps = 3.5f;
  AddNorm(queue, args);
  EXPECT_TRUE(SameBits(out, Floats{0.75f, 2.0f}));
  EXPECT_TRUE(SameBits(Squares(queue, x, 2), Floats{25}));
  // A sum that nobody reads need not be kept, nor squares that belong to the whole row be given.
  Floats alone(2);
  AddNorm(queue, {.x = Matrix(x, 2), .weight = Row(weight), .eps = 3.5f, .out = Matrix(alone, 2)});
  EXPECT_TRUE(SameBits(alone, out));
  // A gate of 0 halves.
  const Floats gate = {0, 0}, squares = {25};
  GatedNorm(queue, {.x = Matrix(x, 2),
                    .gate = Matrix(gate, 2),
                    .weight = Row(weight),
                    .eps = 3.5f,
                    .squares = Row(squares),
                    .width = 2,
                    .out = Matrix(out, 2)});
  EXPECT_TRUE(SameBits(out, Floats{0.375f, 1.0f}));
  GatedNorm(queue, {.x = Matrix(x, 2),
                    .gate = Matrix(gate, 2),
                    .weight = Row(weight),
                    .eps = 3.5f,
                    .width = 2,
                    .out = Matrix(alone, 2)});
  EXPECT_TRUE(SameBits(alone, out));
}

TEST(NormTest, AgreesWithTheDoubleReference) {
  Queue queue(2);
  for (const NormCase& c : kNormCases) {
    SCOPED_TRACE(c.width);
    const int64_t n = c.rows * c.width;
    const Floats x = RandomFloats(1, n), branch = RandomFloats(2, n);
    const Floats weight = RandomFloats(3, c.width);
    const Doubles sum = ReferenceAdd(x, branch, kAlpha, kBeta);
    const Doubles normed =
        ByRow(sum, c.width, [&](auto row, int64_t) { return ReferenceNorm(row, weight, 1e-5); });
    const Doubles gated = ByRow({x.begin(), x.end()}, c.width, [&](auto row, int64_t at) {
      return ReferenceGatedNorm(row, std::span(branch).subspan(at, c.width), weight, 1e-6);
    });
    const Doubles squares = ByRow({x.begin(), x.end()}, c.width, [&](auto row, int64_t) {
      Doubles one = {0.0};
      for (const double v : row) one[0] += v * v;
      return one;
    });
    OnEverySimdTarget([&] {
      const SumAndNorm got = AddAndNorm(queue, x, branch, weight);
      EXPECT_LE(RelativeError(got.sum, sum), 1e-7);
      EXPECT_LE(RelativeError(got.out, normed), 2e-7);
      const Floats mine = Squares(queue, x, c.width);
      EXPECT_LE(RelativeError(mine, squares), 5e-7);
      EXPECT_LE(RelativeError(Gated(queue, x, branch, weight, mine, c.width), gated), 3e-7);
    });
  }
}

TEST(NormTest, AResidualAloneIsTheSumOfTheNorm) {
  Queue queue(2);
  for (const NormCase& c : kNormCases) {
    const int64_t n = c.rows * c.width;
    const Floats x = RandomFloats(4, n), branch = RandomFloats(5, n);
    PoisonedVector<float> sum(n);
    AddResidual(queue, {.x = Matrix(x, c.width),
                        .branch = Matrix(branch, c.width),
                        .alpha = kAlpha,
                        .beta = kBeta,
                        .sum = Tensor(sum.data(), {c.rows, c.width})});
    const Floats weight(c.width, 1.0f);
    EXPECT_TRUE(SameBits(sum, AddAndNorm(queue, x, branch, weight).sum));
  }
}

TEST(NormTest, ARowHasTheSameBitsAloneAndOnAnyNumberOfThreads) {
  constexpr int64_t kWidth = 83, kRows = 50;
  const Floats x = RandomFloats(6, kRows * kWidth), branch = RandomFloats(7, kRows * kWidth);
  const Floats weight = RandomFloats(8, kWidth);
  Queue one(1), two(2), three(3);
  SumAndNorm alone;
  Floats gated;
  for (auto a = x.begin(), b = branch.begin(); a != x.end(); a += kWidth, b += kWidth) {
    const Floats row(a, a + kWidth), more(b, b + kWidth);
    const SumAndNorm r = AddAndNorm(one, row, more, weight);
    alone.sum.insert(alone.sum.end(), r.sum.begin(), r.sum.end());
    alone.out.insert(alone.out.end(), r.out.begin(), r.out.end());
    const Floats g = Gated(one, row, more, weight, Squares(one, row, kWidth), kWidth);
    gated.insert(gated.end(), g.begin(), g.end());
  }
  for (Queue* queue : {&one, &two, &three}) {
    const SumAndNorm got = AddAndNorm(*queue, x, branch, weight);
    EXPECT_TRUE(SameBits(got.sum, alone.sum));
    EXPECT_TRUE(SameBits(got.out, alone.out));
    EXPECT_TRUE(
        SameBits(Gated(*queue, x, branch, weight, Squares(*queue, x, kWidth), kWidth), gated));
  }
}

TEST(NormTest, InPlaceGivesTheSameBits) {
  Queue queue(1);
  constexpr int64_t kWidth = 37;
  const Floats x = RandomFloats(9, 5 * kWidth), branch = RandomFloats(10, 5 * kWidth);
  const Floats weight = RandomFloats(11, kWidth);
  const SumAndNorm want = AddAndNorm(queue, x, branch, weight);
  const auto run = [&](const Floats& a, const Floats& b, const Floats& sum, const Floats& out) {
    AddNorm(queue, {Matrix(a, kWidth), Matrix(b, kWidth), kAlpha, kBeta, Row(weight), 1e-5f,
                    Matrix(sum, kWidth), Matrix(out, kWidth)});
  };
  Floats a = x, b = branch, out(x.size());
  run(a, b, a, out);
  EXPECT_TRUE(SameBits(a, want.sum) && SameBits(out, want.out)) << "sum is x";
  a = x;
  run(a, b, b, a);
  EXPECT_TRUE(SameBits(b, want.sum) && SameBits(a, want.out)) << "sum is branch, out is x";
  a = x;
  const Floats squares = Squares(queue, a, kWidth);
  GatedNorm(queue, {Matrix(a, kWidth), Matrix(branch, kWidth), Row(weight), 1e-6f, Row(squares),
                    kWidth, Matrix(a, kWidth)});
  EXPECT_TRUE(SameBits(a, Gated(queue, x, branch, weight, squares, kWidth)));
}

TEST(NormTest, RowsMayBeStrided) {
  Queue queue(1);
  constexpr int64_t kWidth = 21, kWide = 30, kRows = 4;
  const Floats wide = RandomFloats(12, kRows * kWide), weight = RandomFloats(13, kWidth);
  PoisonedVector<float> out(kRows * kWide), squares(kRows);
  Tensor x(wide.data() + 3, {kRows, kWidth}), to(out.data() + 3, {kRows, kWidth});
  x.stride[0] = to.stride[0] = kWide;
  SumOfSquares(queue, x, Tensor(squares.data(), {kRows}));
  GatedNorm(queue, {x, x, Row(weight), 1e-6f, Tensor(squares.data(), {kRows}), kWidth, to});
  for (int64_t r = 0; r < kRows; ++r) {
    const auto first = wide.begin() + r * kWide + 3;
    const Floats row(first, first + kWidth);
    EXPECT_TRUE(SameBits(std::span(out.data() + r * kWide + 3, kWidth),
                         Gated(queue, row, row, weight, Squares(queue, row, kWidth), kWidth)));
  }
  EXPECT_EQ(out.NumUnwritten(), static_cast<size_t>(kRows * (kWide - kWidth)));
}

TEST(NormTest, RanksThatHoldPartsOfTheRowGiveTheWhole) {
  Queue queue(1);
  constexpr int64_t kWidth = 96, kHalf = 48;
  const Floats x = RandomFloats(14, kWidth), gate = RandomFloats(15, kWidth);
  const Floats weight = RandomFloats(16, kWidth);
  const auto half = [&](const Floats& all, int64_t rank) {
    return Floats(all.begin() + rank * kHalf, all.begin() + (rank + 1) * kHalf);
  };
  const Floats whole = Gated(queue, x, gate, weight, Squares(queue, x, kWidth), kWidth);
  const float squares = Squares(queue, half(x, 0), kHalf)[0] + Squares(queue, half(x, 1), kHalf)[0];
  for (const int64_t rank : {0, 1}) {
    const Floats part =
        Gated(queue, half(x, rank), half(gate, rank), half(weight, rank), {squares}, kWidth);
    EXPECT_LE(RelativeError(part, half(whole, rank)), 2e-7);
  }
}

TEST(NormTest, ARowOfZerosStaysZero) {
  Queue queue(1);
  const Floats zeros(40, 0.0f), weight(20, 3.0f);
  const SumAndNorm got = AddAndNorm(queue, zeros, zeros, weight);
  EXPECT_TRUE(SameBits(got.out, zeros));
}

TEST(NormTest, ShapesThatDisagreeAreABug) {
  Queue queue(1);
  Floats x(24), w(8), bad(7);
  const Tensor m = Matrix(x, 8);
  const auto norm = [&](const Tensor& a, const Tensor& weight, float alpha, const Tensor& branch) {
    AddNorm(queue,
            {.x = a, .branch = branch, .alpha = alpha, .weight = weight, .sum = m, .out = m});
  };
  EXPECT_THROW(norm(m, Row(bad), 1, m), Bug);
  EXPECT_THROW(norm(Matrix(x, 12), Row(w), 1, m), Bug);
  EXPECT_THROW(norm(m, Row(w), 1, Matrix(x, 12)), Bug);
  EXPECT_THROW(norm(m, Row(w), 2, Tensor()), Bug) << "alpha without a branch";
  EXPECT_THROW(AddResidual(queue, {.x = m, .branch = Matrix(x, 12), .sum = m}), Bug);
  EXPECT_THROW(SumOfSquares(queue, m, Row(w)), Bug);
  const Floats squares(3);
  EXPECT_THROW(GatedNorm(queue, {m, m, Row(w), 1e-6f, Row(squares), 7, m}), Bug);
  EXPECT_THROW(GatedNorm(queue, {m, m, Row(w), 1e-6f, Row(w), 8, m}), Bug);
}

}  // namespace
}  // namespace mm01
