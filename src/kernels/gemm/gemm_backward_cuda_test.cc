// MatMul on a GPU against the sum in double: all orientations and types, aligned and not.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "device/device.h"
#include "kernels/gemm/gemm_backward.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

struct Case {
  int64_t m, n, k;
};

constexpr Case kCases[] = {{1, 1, 1},      {0, 8, 8},       {3, 17, 0},      {2, 16, 7},
                           {63, 64, 65},   {64, 64, 64},    {13, 48, 600},   {200, 152, 64},
                           {256, 128, 96}, {16, 8, 10'007}, {136, 96, 4096}, {1009, 72, 40}};

struct Types {
  DType a, b, c;
};

constexpr DType kF32 = DType::kF32, kBF16 = DType::kBF16;
constexpr Types kTypes[] = {{kF32, kF32, kF32},  {kBF16, kBF16, kBF16}, {kBF16, kBF16, kF32},
                            {kBF16, kF32, kF32}, {kF32, kBF16, kF32},   {kF32, kF32, kBF16},
                            {kBF16, kF32, kBF16}};

class MatMulCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }

 private:
  std::unique_ptr<Queue> queue_;
};

// A matrix on the GPU whose rows are `ld` apart, and the numbers that it holds.
struct Matrix {
  int64_t rows, width, ld;
  Floats values;  // with what lies between the rows
  CudaTensor memory;

  Matrix(Queue& queue, DType type, uint64_t stream, int64_t num_rows, int64_t num_columns,
         int64_t row_ld)
      : rows(num_rows),
        width(num_columns),
        ld(row_ld),
        values(type == kBF16 ? RandomBF16s(stream, rows * ld) : RandomFloats(stream, rows * ld)),
        memory(queue, type, {rows, ld}, values) {}

  Tensor tensor() const {
    Tensor t = memory;
    t.shape[1] = width;
    return t;
  }
  double at(int64_t i, int64_t j) const {
    return static_cast<double>(values[static_cast<size_t>(i * ld + j)]);
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

// Rows of c, and whether what lies between them is untouched.
Floats RowsOf(const Matrix& c) {
  Floats all = c.memory.ToFloat(), out;
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t j = 0; j < c.ld; ++j) {
      const auto at = static_cast<size_t>(i * c.ld + j);
      if (j < c.width) {
        out.push_back(all[at]);
      } else {
        EXPECT_EQ(all[at], c.values[at]) << "row " << i << ", beside the columns";
      }
    }
  }
  return out;
}

TEST_F(MatMulCuda, EveryOrientationFollowsTheSum) {
  for (const Case& c : kCases) {
    for (const Types& t : kTypes) {
      for (const int form : {0, 1, 2, 3}) {
        for (const bool aligned : {false, true}) {
          const bool ta = form & 1, tb = form & 2;
          SCOPED_TRACE(testing::Message()
                       << c.m << " x " << c.n << " x " << c.k << ", transposed " << ta << tb
                       << ", types " << ToString(t.a) << " " << ToString(t.b) << " "
                       << ToString(t.c) << (aligned ? ", aligned" : ""));
          const auto ld = [&](int64_t width) { return aligned ? (width + 15) / 8 * 8 : width + 3; };
          const int64_t a_width = ta ? c.m : c.k, b_width = tb ? c.k : c.n;
          const Matrix a(queue(), t.a, 1, ta ? c.k : c.m, a_width, ld(a_width));
          const Matrix b(queue(), t.b, 2, tb ? c.n : c.k, b_width, ld(b_width));
          const Matrix out(queue(), t.c, 3, c.m, c.n, ld(c.n));
          MatMulArgs args{a.tensor(), b.tensor(), out.tensor(), ta, tb};
          std::vector<double> want = Product(c, a, ta, b, tb);
          const double limit = t.c == kF32 ? 1e-5 : 3e-3;
          MatMul(queue(), args);
          EXPECT_LE(RelativeError(RowsOf(out), want), limit);
          args.add = true;
          MatMul(queue(), args);
          for (double& w : want) w *= 2;
          EXPECT_LE(RelativeError(RowsOf(out), want), limit);
        }
      }
    }
  }
}

TEST_F(MatMulCuda, RunsGiveTheSameBits) {
  const Case c{256, 768, 32'768};
  const Matrix a(queue(), kBF16, 1, c.k, c.m, c.m), b(queue(), kBF16, 2, c.k, c.n, c.n);
  std::vector<Floats> results;
  for (int i = 0; i < 3; ++i) {
    const Matrix out(queue(), kF32, 3, c.m, c.n, c.n);
    MatMul(queue(), {a.tensor(), b.tensor(), out.tensor(), true, false, true});
    results.push_back(RowsOf(out));
  }
  EXPECT_TRUE(SameBits(results[1], results[0]));
  EXPECT_TRUE(SameBits(results[2], results[0]));
}

// Experts side by side, some with no rows.
TEST_F(MatMulCuda, ManyAreEachAsOne) {
  constexpr int64_t kWidth = 64, kRows = 200;
  const int64_t offset[] = {0, 0, 65, 65, 128, kRows};
  const Matrix x(queue(), kBF16, 1, kRows, kWidth, kWidth);
  const Matrix w(queue(), kBF16, 2, 5 * kWidth, kWidth, kWidth);
  const Matrix many(queue(), kBF16, 3, kRows, kWidth, kWidth);
  const Matrix one(queue(), kBF16, 3, kRows, kWidth, kWidth);
  std::vector<MatMulArgs> problems;
  for (int64_t e = 0; e < 5; ++e) {
    MatMulArgs args{x.tensor().Rows(offset[e], offset[e + 1]),
                    w.tensor().Rows(e * kWidth, (e + 1) * kWidth),
                    many.tensor().Rows(offset[e], offset[e + 1]), false, true};
    problems.push_back(args);
    args.c = one.tensor().Rows(offset[e], offset[e + 1]);
    MatMul(queue(), args);
  }
  MatMulMany(queue(), problems);
  EXPECT_TRUE(SameBits(RowsOf(many), RowsOf(one)));
}

}  // namespace
}  // namespace mm01
