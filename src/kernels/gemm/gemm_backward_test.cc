// MatMul against the sum in double, in all four orientations, and the bits that it promises.
#include "kernels/gemm/gemm_backward.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/gemm/gemm.h"
#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

struct Case {
  int64_t m, n, k;
};

constexpr Case kCases[] = {{1, 1, 1},    {1, 40, 300},  {2, 16, 7},     {3, 17, 256},
                           {7, 33, 257}, {13, 48, 600}, {200, 150, 64}, {5, 300, 1}};

// Rows of `width` numbers, `width + 3` apart.
struct Matrix {
  int64_t rows, width;
  Floats data;

  Matrix(uint64_t stream, int64_t num_rows, int64_t num_columns)
      : rows(num_rows), width(num_columns), data(RandomFloats(stream, rows * (width + 3))) {}
  Tensor tensor() {
    Tensor t(data.data(), {rows, width});
    t.stride[0] = width + 3;
    return t;
  }
  double at(int64_t i, int64_t j) const {
    return static_cast<double>(data[static_cast<size_t>(i * (width + 3) + j)]);
  }
};

std::vector<double> Product(const Case& c, const Matrix& a, bool ta, const Matrix& b, bool tb) {
  std::vector<double> out;
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) {
      double sum = 0.0;
      for (int64_t k = 0; k < c.k; ++k) {
        sum += (ta ? a.at(k, i) : a.at(i, k)) * (tb ? b.at(j, k) : b.at(k, j));
      }
      out.push_back(sum);
    }
  }
  return out;
}

TEST(MatMul, EveryOrientationFollowsTheSum) {
  OnEverySimdTarget([] {
    Queue queue(2);
    for (const Case& c : kCases) {
      for (const bool ta : {false, true}) {
        for (const bool tb : {false, true}) {
          SCOPED_TRACE(testing::Message() << c.m << " x " << c.n << " x " << c.k << ta << tb);
          Matrix a(1, ta ? c.k : c.m, ta ? c.m : c.k), b(2, tb ? c.n : c.k, tb ? c.k : c.n);
          std::vector<double> want = Product(c, a, ta, b, tb);
          PoisonedVector<float> out(static_cast<size_t>(c.m * c.n));
          MatMulArgs args{a.tensor(), b.tensor(), Tensor(out.data(), {c.m, c.n}), ta, tb};
          MatMul(queue, args);
          EXPECT_LE(RelativeError(out, want), 1e-6);
          args.add = true;
          MatMul(queue, args);
          for (double& x : want) x *= 2.0;
          EXPECT_LE(RelativeError(out, want), 1e-6);
        }
      }
    }
  });
}

TEST(MatMul, HasTheBitsOfGemmOnAnyNumberOfThreads) {
  constexpr int64_t kM = 230, kN = 130, kK = 700;
  Floats x = RandomFloats(1, kM * kK), w = RandomFloats(2, kN * kK);
  Queue one(1), three(3);
  Weight weight({}, kN, kK);
  for (int64_t n = 0; n < kN; ++n)
    weight.SetRow(n, std::span(w).subspan(static_cast<size_t>(n * kK), kK));
  Floats want(kM * kN), got(kM * kN);
  Gemm(one, {Tensor(x.data(), {kM, kK}), &weight, Tensor(want.data(), {kM, kN})});
  for (Queue* queue : {&one, &three}) {
    MatMul(*queue, {.a = Tensor(x.data(), {kM, kK}),
                    .b = Tensor(w.data(), {kN, kK}),
                    .c = Tensor(got.data(), {kM, kN}),
                    .transpose_b = true});
    EXPECT_TRUE(SameBits(got, want));
  }
}

TEST(MatMul, SwiGluHasTheBitsOfAnOpOfItsOwn) {
  constexpr int64_t kRows = 30, kFfn = 24, kK = 40;
  Matrix a(1, kRows, kK), b(2, 2 * 2 * kFfn, kK), c(3, kRows, 2 * kFfn), out(4, kRows, kFfn);
  Matrix other_c = c, other_out = out;
  Queue queue(2);
  const auto problems = [&](Matrix& to) {
    const auto expert = [&](int64_t e, int64_t begin, int64_t end) {
      return MatMulArgs{a.tensor().Rows(begin, end),
                        b.tensor().Rows(e * 2 * kFfn, (e + 1) * 2 * kFfn),
                        to.tensor().Rows(begin, end), false, true};
    };
    return std::vector<MatMulArgs>{expert(0, 0, 13), expert(1, 13, kRows)};
  };
  const auto swiglu = [&](Matrix& from, Matrix& to) {
    Tensor gate = from.tensor(), up = from.tensor();
    gate.shape[1] = up.shape[1] = kFfn;
    up.data = static_cast<float*>(up.data) + kFfn;
    return SwiGluForwardArgs{gate, up, to.tensor()};
  };
  MatMulManySwiGlu(queue, problems(c), swiglu(c, out));
  MatMulMany(queue, problems(other_c));
  SwiGluOf(queue, swiglu(other_c, other_out));
  EXPECT_TRUE(SameBits(c.data, other_c.data));
  EXPECT_TRUE(SameBits(out.data, other_out.data));
}

TEST(MatMul, SiluHasTheBitsOfAnOpOfItsOwn) {
  constexpr int64_t kRows = 30, kColumns = 50, kSilu = 33, kK = 40;
  Matrix a(1, kRows, kK), b(2, kColumns, kK), c(3, kRows, kColumns), out(4, kRows, kSilu);
  Matrix other_c = c, other_out = out;
  Queue queue(2);
  const auto product = [&](Matrix& to) {
    return MatMulArgs{a.tensor(), b.tensor(), to.tensor(), false, true};
  };
  const auto silu = [&](Matrix& from, Matrix& to) {
    Tensor x = from.tensor();
    x.shape[1] = kSilu;
    return SiluForwardArgs{x, to.tensor()};
  };
  MatMulSilu(queue, product(c), silu(c, out));
  MatMul(queue, product(other_c));
  SiluOf(queue, silu(other_c, other_out));
  EXPECT_TRUE(SameBits(c.data, other_c.data));
  EXPECT_TRUE(SameBits(out.data, other_out.data));
}

TEST(MatMul, SumsOfNothing) {
  Queue queue(1);
  Floats some(6, 1.0f), c(6, 5.0f);
  const Tensor out(c.data(), {2, 3});
  MatMulArgs args{
      Tensor(some.data(), {2, 0}), Tensor(some.data(), {0, 3}), out, false, false, true};
  MatMul(queue, args);
  EXPECT_EQ(c[0], 5.0f);
  args.add = false;
  MatMul(queue, args);
  EXPECT_EQ(c[5], 0.0f);
  MatMul(queue,
         {Tensor(some.data(), {0, 3}), Tensor(some.data(), {3, 2}), Tensor(c.data(), {0, 2})});
}

}  // namespace
}  // namespace mm01
