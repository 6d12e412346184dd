// MatMul on a GPU against the sum in double: all orientations and types, aligned and not.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
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

// Sums against the library's, which adds in another order; SiLU of them to the bit.
TEST_F(MatMulCuda, SiluOfTheFirstColumns) {
  for (const auto& [c, silu_columns] :
       {std::pair{Case{300, 512, 256}, int64_t{384}},
        {{2500, 136, 72}, 136},
        {{70, 72, 40}, 8},
        {{65, 1024, 1024}, 768},
        {{0, 64, 64}, 64},
        // Two passes: k too large, and columns or rows that are not aligned.
        {{40, 64, 1032}, 48},
        {{40, 64, 64}, 33},
        {{40, 63, 64}, 32}}) {
    for (const DType type : {kBF16, kF32}) {
      SCOPED_TRACE(testing::Message() << c.m << " x " << c.n << " x " << c.k << ", SiLU of "
                                      << silu_columns << ", " << ToString(type));
      const Matrix a(queue(), type, 1, c.m, c.k, c.k + 8), b(queue(), type, 2, c.n, c.k, c.k);
      const Matrix product(queue(), type, 3, c.m, c.n, c.n + 16);
      const Matrix out(queue(), type, 4, c.m, silu_columns, silu_columns + 8);
      const Matrix want_out(queue(), type, 4, c.m, silu_columns, silu_columns + 8);
      Tensor x = product.tensor();
      x.shape[1] = silu_columns;
      MatMulSilu(queue(), {a.tensor(), b.tensor(), product.tensor(), false, true},
                 {.x = x, .out = out.tensor()});
      EXPECT_LE(RelativeError(RowsOf(product), Product(c, a, false, b, true)),
                type == kF32 ? 1e-5 : 3e-3);
      SiluOf(queue(), {.x = x, .out = want_out.tensor()});
      EXPECT_TRUE(SameBits(RowsOf(out), RowsOf(want_out)));
    }
  }
}

// Experts side by side with as much between their matrices as they have, like w1 of w1, w3 and w2.
struct Experts {
  std::vector<int64_t> rows;
  int64_t n, k;
};

class ExpertsCuda : public MatMulCuda {
 protected:
  // Multiplies and compares with the sum.
  void Check(const Experts& e, bool transpose_b, const Types& types) {
    SCOPED_TRACE(testing::Message() << "N " << e.n << ", K " << e.k << (transpose_b ? ", w^T" : "")
                                    << ", to " << ToString(types.c));
    int64_t rows = 0;
    for (const int64_t m : e.rows) rows += m;
    const int64_t w_rows = transpose_b ? e.n : e.k, w_width = transpose_b ? e.k : e.n;
    const Matrix x(queue(), types.a, 1, rows, e.k, e.k + 8);
    const Matrix w(queue(), types.b, 2, std::ssize(e.rows) * 2 * w_rows, w_width, w_width);
    const Matrix out(queue(), types.c, 3, rows, e.n, e.n + 16);
    std::vector<MatMulArgs> problems;
    std::vector<double> want;
    for (int64_t i = 0, first = 0; i < std::ssize(e.rows); ++i) {
      const int64_t m = e.rows[static_cast<size_t>(i)];
      problems.push_back({x.tensor().Rows(first, first + m),
                          w.tensor().Rows(2 * i * w_rows, (2 * i + 1) * w_rows),
                          out.tensor().Rows(first, first + m), false, transpose_b});
      for (int64_t r = first; r < first + m; ++r) {
        for (int64_t column = 0; column < e.n; ++column) {
          double sum = 0.0;
          for (int64_t at = 0; at < e.k; ++at) {
            sum += x.at(r, at) * (transpose_b ? w.at(2 * i * w_rows + column, at)
                                              : w.at(2 * i * w_rows + at, column));
          }
          want.push_back(sum);
        }
      }
      first += m;
    }
    MatMulMany(queue(), problems);
    EXPECT_LE(RelativeError(RowsOf(out), want), types.c == kF32 ? 1e-5 : 3e-3);
  }
};

TEST_F(ExpertsCuda, FollowTheSum) {
  constexpr Types kAllBF16 = {kBF16, kBF16, kBF16};
  const std::vector<int64_t> ragged = {0, 65, 0, 63, 1, 64, 251, 320, 0};
  for (const bool transpose_b : {false, true}) {
    for (const Experts& e : {Experts{ragged, 64, 64},
                             {ragged, 200, 128},
                             {ragged, 136, 192},
                             {ragged, 8, 320},
                             {{2500, 7}, 256, 64},
                             {{2049, 4100}, 24, 64},
                             {{0, 0, 3}, 264, 704},
                             {{0, 0}, 64, 64},
                             {ragged, 72, 40}}) {  // K of 40: transposed it goes one by one
      Check(e, transpose_b, kAllBF16);
    }
    Check({ragged, 64, 64}, transpose_b, {kBF16, kBF16, kF32});
    Check({ragged, 17, 24}, transpose_b, {kF32, kF32, kF32});
  }
}

TEST_F(ExpertsCuda, RunsGiveTheSameBits) {
  const Matrix x(queue(), kBF16, 1, 5000, 256, 256), w(queue(), kBF16, 2, 4 * 512, 256, 256);
  std::vector<Floats> results;
  for (int i = 0; i < 3; ++i) {
    const Matrix out(queue(), kBF16, 3, 5000, 512, 512);
    std::vector<MatMulArgs> problems;
    const int64_t offset[] = {0, 1200, 1200, 3777, 5000};
    for (int64_t e = 0; e < 4; ++e) {
      problems.push_back({x.tensor().Rows(offset[e], offset[e + 1]),
                          w.tensor().Rows(512 * e, 512 * (e + 1)),
                          out.tensor().Rows(offset[e], offset[e + 1]), false, true});
    }
    MatMulMany(queue(), problems);
    results.push_back(RowsOf(out));
  }
  EXPECT_TRUE(SameBits(results[1], results[0]));
  EXPECT_TRUE(SameBits(results[2], results[0]));
}

// First products of experts, w1 over w3 with a w2 behind them, and SwiGLU of gate beside up.
struct GatedExperts {
  Floats both, out;  // with what lies between the rows

  GatedExperts(Queue& queue, const Experts& e, DType type, bool in_one_pass) {
    const int64_t ffn = e.n / 2, w_rows = e.n + ffn;
    int64_t rows = 0;
    for (const int64_t m : e.rows) rows += m;
    const Matrix x(queue, type, 1, rows, e.k, e.k + 8);
    const Matrix w(queue, type, 2, std::ssize(e.rows) * w_rows, e.k, e.k);
    const Matrix c(queue, type, 3, rows, e.n, e.n + 16), h(queue, type, 4, rows, ffn, ffn + 8);
    std::vector<MatMulArgs> problems;
    for (int64_t i = 0, first = 0; i < std::ssize(e.rows); ++i) {
      const int64_t end = first + e.rows[static_cast<size_t>(i)];
      problems.push_back({x.tensor().Rows(first, end),
                          w.tensor().Rows(i * w_rows, i * w_rows + e.n),
                          c.tensor().Rows(first, end), false, true});
      first = end;
    }
    Tensor gate = c.tensor(), up = c.tensor();
    gate.shape[1] = up.shape[1] = ffn;
    up.data = static_cast<std::byte*>(up.data) + ffn * SizeOf(type);
    const SwiGluForwardArgs swiglu{.gate = gate, .up = up, .out = h.tensor()};
    if (in_one_pass) {
      MatMulManySwiGlu(queue, problems, swiglu);
    } else {
      MatMulMany(queue, problems);
      SwiGluOf(queue, swiglu);
    }
    both = c.memory.ToFloat();
    out = h.memory.ToFloat();
  }
};

TEST_F(ExpertsCuda, SwiGluInOnePassHasTheBitsOfTwo) {
  const std::vector<int64_t> ragged = {0, 65, 0, 63, 1, 64, 251, 320, 0};
  for (const Experts& e : {Experts{ragged, 128, 64},
                           {ragged, 512, 256},
                           {ragged, 272, 72},
                           {ragged, 16, 128},
                           {{2500, 7}, 256, 320},
                           {{2049, 4100}, 48, 64},
                           {{0, 0, 3}, 144, 40},
                           {{0, 0}, 64, 64},
                           // These take two passes: one expert, columns that are not aligned.
                           {{300}, 64, 64},
                           {ragged, 24, 64}}) {
    for (const DType type : {kBF16, kF32}) {
      SCOPED_TRACE(testing::Message() << "N " << e.n << ", K " << e.k << ", " << e.rows.size()
                                      << " experts of " << ToString(type));
      const GatedExperts got(queue(), e, type, true), want(queue(), e, type, false);
      EXPECT_TRUE(SameBits(got.both, want.both));
      EXPECT_TRUE(SameBits(got.out, want.out));
    }
  }
}

class ExpertGradientsCuda : public MatMulCuda {
 protected:
  // c_e += a_e^T b_e for experts of `rows` rows, the c beside each other in memory; c as it is
  // after that. `spoilt`: an expert whose rows are all NaN.
  Floats Add(const Experts& e, const Types& types, std::optional<size_t> spoilt = {}) {
    std::vector<int64_t> offset = {0};
    for (const int64_t rows : e.rows) offset.push_back(offset.back() + rows);
    Matrix a(queue(), types.a, 1, offset.back(), e.n, e.n + 8);
    Matrix b(queue(), types.b, 2, offset.back(), e.k, e.k + 16);
    const Matrix c(queue(), types.c, 3, std::ssize(e.rows) * e.n, e.k, e.k + 4);
    if (spoilt) {
      for (Matrix* m : {&a, &b}) {
        std::fill(m->values.begin() + offset[*spoilt] * m->ld,
                  m->values.begin() + offset[*spoilt + 1] * m->ld, kNaN);
        m->memory = CudaTensor(queue(), kBF16, {m->rows, m->ld}, m->values);
      }
    }
    std::vector<MatMulArgs> problems;
    for (size_t i = 0; i < e.rows.size(); ++i) {
      const auto at = static_cast<int64_t>(i) * e.n;
      problems.push_back({a.tensor().Rows(offset[i], offset[i + 1]),
                          b.tensor().Rows(offset[i], offset[i + 1]), c.tensor().Rows(at, at + e.n),
                          true, false, true});
    }
    MatMulMany(queue(), problems);
    want_.clear();
    for (size_t i = 0; i < e.rows.size(); ++i) {
      for (int64_t m = 0; m < e.n; ++m) {
        for (int64_t n = 0; n < e.k; ++n) {
          double sum = c.at(static_cast<int64_t>(i) * e.n + m, n);
          for (int64_t r = offset[i]; r < offset[i + 1]; ++r) sum += a.at(r, m) * b.at(r, n);
          want_.push_back(sum);
        }
      }
    }
    return RowsOf(c);
  }
  const std::vector<double>& want() const { return want_; }

 private:
  std::vector<double> want_;
};

// Matrices of one tile and of several, of whole tiles and of parts; runs of one chunk, of more than
// there are stages, and of several experts; one matrix too large to be grouped.
TEST_F(ExpertGradientsCuda, FollowTheSum) {
  constexpr Types kGradients = {kBF16, kBF16, kF32};
  const std::vector<int64_t> ragged = {0, 65, 0, 63, 1, 64, 251, 320, 0};
  for (const Experts& e : {Experts{ragged, 128, 256},
                           {ragged, 256, 256},
                           {ragged, 136, 72},
                           {ragged, 8, 320},
                           {ragged, 24, 16},
                           {{3000, 0, 2900, 40}, 512, 256},
                           {{60'000, 21, 9000}, 16, 8},
                           {{20'000, 1, 30'011}, 200, 24},
                           {{0, 0, 3}, 264, 264},
                           {{0, 0}, 64, 64},
                           {{100, 30}, 1024, 1032}}) {
    SCOPED_TRACE(testing::Message() << e.n << " x " << e.k << ", " << e.rows.size() << " experts");
    const Floats got = Add(e, kGradients);
    EXPECT_LE(RelativeError(got, want()), 1e-5);
  }
  const Floats got = Add({ragged, 72, 40}, {kF32, kF32, kF32});
  EXPECT_LE(RelativeError(got, want()), 1e-5);
}

TEST_F(ExpertGradientsCuda, RunsGiveTheSameBits) {
  const Experts e{{2000, 70, 0, 1500}, 136, 264};
  const Floats first = Add(e, {kBF16, kBF16, kF32});
  EXPECT_TRUE(SameBits(Add(e, {kBF16, kBF16, kF32}), first));
}

TEST_F(ExpertGradientsCuda, NoExpertSeesTheRowsOfAnother) {
  const Experts e{{30, 100, 70}, 64, 72};
  const Floats clean = Add(e, {kBF16, kBF16, kF32});
  const Floats got = Add(e, {kBF16, kBF16, kF32}, 1);
  const auto matrix = static_cast<size_t>(e.n * e.k);
  for (size_t i = 0; i < got.size(); ++i) {
    if (i / matrix == 1) {
      ASSERT_TRUE(std::isnan(got[i])) << i;
    } else {
      ASSERT_EQ(got[i], clean[i]) << i;
    }
  }
}

// A router's logits: bf16 rows, float32 weights, few columns.
TEST_F(MatMulCuda, NarrowProductsFollowTheSum) {
  for (const Case& c :
       {Case{1, 8, 256}, Case{63, 1, 8}, Case{64, 9, 264}, Case{65, 32, 6144}, Case{1009, 4, 2048},
        Case{257, 256, 72}, Case{20011, 8, 256}, Case{7001, 12, 200}}) {
    SCOPED_TRACE(testing::Message() << c.m << " x " << c.n << " x " << c.k);
    const Matrix a(queue(), kBF16, 1, c.m, c.k, c.k + 8), b(queue(), kF32, 2, c.n, c.k, c.k);
    const Matrix out(queue(), kF32, 3, c.m, c.n, c.n + 3);
    MatMulArgs args{a.tensor(), b.tensor(), out.tensor(), false, true};
    std::vector<double> want = Product(c, a, false, b, true);
    MatMul(queue(), args);
    EXPECT_LE(RelativeError(RowsOf(out), want), 1e-6);
    args.add = true;
    MatMul(queue(), args);
    for (double& w : want) w *= 2;
    EXPECT_LE(RelativeError(RowsOf(out), want), 1e-6);
  }
}

}  // namespace
}  // namespace mm01
