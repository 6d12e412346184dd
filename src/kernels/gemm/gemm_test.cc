// Gemm against the double reference, and the bits that it promises.
#include "kernels/gemm/gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "kernels/gemm/gemm_cases.h"
#include "kernels/gemm/gemm_ref.h"
#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

std::string Name(const WeightType& type) {
  return ToString(type.dtype) + (type.group ? "/" + std::to_string(type.group) : "");
}

Weight MakeWeight(WeightType type, int64_t n, int64_t k, const Floats& values) {
  Weight w(type, n, k);
  for (int64_t i = 0; i < n; ++i) w.SetRow(i, std::span(values).subspan(i * k, k));
  return w;
}
Weight RandomWeight(WeightType type, int64_t n, int64_t k, uint64_t stream = 77) {
  return MakeWeight(type, n, k, RandomFloats(stream, n * k));
}

// What the weight stands for.
Floats Decoded(const Weight& w) {
  Floats values(w.n() * w.k());
  for (int64_t i = 0; i < w.n(); ++i) w.GetRow(i, std::span(values).subspan(i * w.k(), w.k()));
  return values;
}

// x [m, K] w.
Floats Product(Queue& queue, const Floats& x, int64_t m, const Weight& w) {
  PoisonedVector<float> out(m * w.n());
  Gemm(queue, {Tensor(x.data(), {m, w.k()}), &w, Tensor(out.data(), {m, w.n()})});
  return {out.begin(), out.end()};
}

Floats RowsOf(const Floats& x, int64_t begin, int64_t end, int64_t width) {
  return {x.begin() + begin * width, x.begin() + end * width};
}

TEST(GemmTest, MultipliesWhatWasWorkedByHand) {
  Queue queue(1);
  const Floats x = {1, 2, 3, -4, 5, 0.5f};
  const Weight w = MakeWeight({}, 2, 3, {1, 1, 1, 2, 0, -1});
  EXPECT_TRUE(SameBits(Product(queue, x, 2, w), Floats{6, -1, 1.5f, -8.5f}));
}

TEST(GemmTest, AgreesWithTheDoubleReference) {
  Queue queue(2);
  for (const GemmCase& c : kGemmCases) {
    const Floats x = RandomFloats(1, c.m * c.k);
    for (const WeightType& type : kWeightTypes) {
      SCOPED_TRACE(c.name + (", " + Name(type)));
      const Weight w = RandomWeight(type, c.n, c.k);
      const auto want = ReferenceGemm(x, Decoded(w), c.m, c.n, c.k);
      OnEverySimdTarget([&] { EXPECT_LE(RelativeError(Product(queue, x, c.m, w), want), 1e-6); });
    }
  }
}

TEST(GemmTest, ARowHasTheSameBitsAloneAndAmongAnyNumberOfRows) {
  Queue queue(1);
  constexpr int64_t kMost = 500, kN = 37, kK = 300;
  const Floats x = RandomFloats(2, kMost * kK);
  std::vector<int64_t> counts = {200, kMost};
  for (int64_t m = 1; m <= 30; ++m) counts.push_back(m);
  OnEverySimdTarget([&] {
    for (const WeightType& type : kWeightTypes) {
      SCOPED_TRACE(Name(type));
      const Weight w = RandomWeight(type, kN, kK);
      Floats alone;
      for (int64_t r = 0; r < kMost; ++r) {
        const Floats row = Product(queue, RowsOf(x, r, r + 1, kK), 1, w);
        alone.insert(alone.end(), row.begin(), row.end());
      }
      for (const int64_t m : counts) {
        const int64_t first = std::min<int64_t>(m, kMost - m);
        EXPECT_TRUE(SameBits(Product(queue, RowsOf(x, first, first + m, kK), m, w),
                             RowsOf(alone, first, first + m, kN)))
            << m << " rows";
      }
    }
  });
}

TEST(GemmTest, TheNumberOfThreadsDoesNotChangeABit) {
  Queue one(1), two(2), three(3);
  for (const GemmCase& c :
       {GemmCase{"", 1, 700, 300}, GemmCase{"", 3, 700, 90}, GemmCase{"", 400, 300, 90}}) {
    const Floats x = RandomFloats(3, c.m * c.k);
    for (const WeightType& type : kWeightTypes) {
      SCOPED_TRACE(Name(type));
      const Weight w = RandomWeight(type, c.n, c.k);
      const Floats want = Product(one, x, c.m, w);
      EXPECT_TRUE(SameBits(Product(two, x, c.m, w), want));
      EXPECT_TRUE(SameBits(Product(three, x, c.m, w), want));
    }
  }
}

#if HWY_ARCH_X86
TEST(GemmTest, TheWidthOfAVectorDoesNotChangeABit) {
  Queue queue(1);
  const Floats x = RandomFloats(4, 23 * 300);
  for (const WeightType& type : kWeightTypes) {
    SCOPED_TRACE(Name(type));
    const Weight w = RandomWeight(type, 45, 300);
    std::vector<Floats> results;
    OnEverySimdTarget([&](int64_t target) {
      const bool fuses = target == HWY_AVX2 || target == HWY_AVX3;
      if (fuses) results.push_back(Product(queue, x, 23, w));
    });
    for (const Floats& r : results) EXPECT_TRUE(SameBits(r, results.front()));
  }
}
#endif

TEST(GemmTest, ManyAtOnceEqualOneByOne) {
  Queue queue(3);
  constexpr int64_t kK = 290;
  const Floats x = RandomFloats(5, 60 * kK), other = RandomFloats(6, 9 * 40);
  const Weight a = RandomWeight({}, 70, kK, 1), b = RandomWeight({DType::kBF16}, 33, kK, 2);
  const Weight c = RandomWeight({DType::kI8, 32}, 18, 40, 3);
  struct Part {
    const Floats* x;
    int64_t begin, end;
    const Weight* w;
  };
  // Rows shared by two weights, one row, none, other inputs, overlapping rows of another count.
  const Part parts[] = {{&x, 0, 40, &a}, {&x, 0, 40, &b},    {&x, 40, 41, &a}, {&x, 41, 41, &b},
                        {&x, 0, 3, &b},  {&other, 0, 9, &c}, {&x, 0, 3, &a},   {&x, 41, 60, &b}};
  std::vector<PoisonedVector<float>> outs;
  std::vector<GemmArgs> args;
  for (const Part& p : parts) {
    const int64_t m = p.end - p.begin;
    outs.emplace_back(m * p.w->n());
    args.push_back({Tensor(p.x->data() + p.begin * p.w->k(), {m, p.w->k()}), p.w,
                    Tensor(outs.back().data(), {m, p.w->n()})});
  }
  GemmMany(queue, args);
  for (size_t i = 0; i < std::size(parts); ++i) {
    const Part& p = parts[i];
    const Floats rows = RowsOf(*p.x, p.begin, p.end, p.w->k());
    EXPECT_TRUE(SameBits(Floats(outs[i].begin(), outs[i].end()),
                         Product(queue, rows, p.end - p.begin, *p.w)))
        << "problem " << i;
  }
}

TEST(GemmTest, BF16WeightsThatLoseNothingEqualFloat32Weights) {
  Queue queue(1);
  for (const GemmCase& c : kGemmCases) {
    SCOPED_TRACE(c.name);
    const Floats x = RandomFloats(7, c.m * c.k), values = RandomBF16s(8, c.n * c.k);
    EXPECT_TRUE(SameBits(Product(queue, x, c.m, MakeWeight({DType::kBF16}, c.n, c.k, values)),
                         Product(queue, x, c.m, MakeWeight({}, c.n, c.k, values))));
  }
}

TEST(GemmTest, Int8WeightsComeCloseToFloat32WeightsOfWhatTheyDecodeTo) {
  Queue queue(1);
  OnEverySimdTarget([&] {
    for (const GemmCase& c : kGemmCases) {
      const Floats x = RandomFloats(9, c.m * c.k);
      for (const int64_t group : {32, 64, 128}) {
        SCOPED_TRACE(c.name + (", groups of " + std::to_string(group)));
        const Weight w = RandomWeight({DType::kI8, group}, c.n, c.k);
        const Floats want = Product(queue, x, c.m, MakeWeight({}, c.n, c.k, Decoded(w)));
        EXPECT_LE(RelativeError(Product(queue, x, c.m, w), want), 1e-5);
      }
    }
  });
}

TEST(GemmTest, RowsMayBeStridedAndWhatLiesBetweenThemIsLeftAlone) {
  Queue queue(1);
  constexpr int64_t kK = 45, kN = 21, kWideX = 60, kWideOut = 32;
  for (const int64_t m : {1, 3, 14}) {
    const Floats wide = RandomFloats(10, m * kWideX);
    const Weight w = RandomWeight({}, kN, kK);
    PoisonedVector<float> out(m * kWideOut);
    Tensor x(wide.data() + 5, {m, kK}), y(out.data() + 7, {m, kN});
    x.stride[0] = kWideX;
    y.stride[0] = kWideOut;
    Gemm(queue, {x, &w, y});
    for (int64_t r = 0; r < m; ++r) {
      const auto first = wide.begin() + r * kWideX + 5;
      EXPECT_TRUE(SameBits(std::span(out.data() + r * kWideOut + 7, kN),
                           Product(queue, Floats(first, first + kK), 1, w)));
    }
    EXPECT_EQ(out.NumUnwritten(), static_cast<size_t>(m * (kWideOut - kN)));
  }
}

TEST(GemmTest, NoRowsAreNoWork) {
  Queue queue(2);
  const Weight w = RandomWeight({}, 8, 8);
  EXPECT_TRUE(Product(queue, {}, 0, w).empty());
  GemmMany(queue, {});
}

TEST(GemmTest, ShapesThatDisagreeAreABug) {
  Queue queue(1);
  Floats x(24), out(24);
  const Weight w = RandomWeight({}, 3, 8);
  const auto run = [&](const Tensor& a, const Tensor& b) { Gemm(queue, {a, &w, b}); };
  run(Tensor(x.data(), {2, 8}), Tensor(out.data(), {2, 3}));
  EXPECT_THROW(run(Tensor(x.data(), {2, 7}), Tensor(out.data(), {2, 3})), Bug);
  EXPECT_THROW(run(Tensor(x.data(), {2, 8}), Tensor(out.data(), {3, 3})), Bug);
  EXPECT_THROW(run(Tensor(x.data(), {2, 8}), Tensor(out.data(), {2, 4})), Bug);
  EXPECT_THROW(run(Tensor(x.data(), {16}), Tensor(out.data(), {2, 3})), Bug);
}

TEST(GemmTest, ScratchIsTakenOnce) {
  Queue queue(2);
  const Floats x = RandomFloats(11, 400 * 300);
  const Weight w = RandomWeight({DType::kI8, 64}, 64, 300);
  Product(queue, x, 400, w);
  const int64_t bytes = queue.scratch_bytes();
  for (const int64_t m : {400, 1, 3, 400}) Product(queue, x, m, w);
  EXPECT_EQ(queue.scratch_bytes(), bytes);
}

}  // namespace
}  // namespace mm01
