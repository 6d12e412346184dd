// The norms on a GPU against their formulas in double.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "device/device.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_cases.h"
#include "kernels/norm/norm_ref.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/near.h"

namespace mm01 {
namespace {

constexpr float kAlpha = 3.5565588f, kBeta = 0.75f;
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

double Limit(DType type) {
  return type == DType::kF32 ? 1e-6 : 2e-3;
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

std::vector<NormCase> Cases() {
  std::vector<NormCase> cases(std::begin(kNormCases), std::end(kNormCases));
  for (const NormCase c : {NormCase{3, 8192},
                           {2, 16384},
                           {2, 16392},
                           {1, 20001},
                           {300, 6144},
                           {5000, 256},
                           {4231, 72}}) {
    cases.push_back(c);
  }
  return cases;
}

class NormCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }

  struct SumAndNorm {
    Floats sum, out;
  };
  struct Types {
    DType x, branch, sum, out;
  };
  SumAndNorm AddAndNorm(const Floats& x, const Floats& branch, const Floats& weight,
                        const Types& types) {
    const int64_t width = std::ssize(weight), rows = std::ssize(x) / width;
    const CudaTensor in(queue(), types.x, {rows, width}, x);
    std::optional<CudaTensor> added;
    if (!branch.empty()) added.emplace(queue(), types.branch, std::vector{rows, width}, branch);
    const CudaTensor w(queue(), DType::kF32, {width}, weight);
    const CudaTensor sum(queue(), types.sum, {rows, width}), out(queue(), types.out, {rows, width});
    AddNorm(queue(), {.x = in,
                      .branch = added ? added->tensor() : Tensor(),
                      .alpha = branch.empty() ? 1.0f : kAlpha,
                      .beta = kBeta,
                      .weight = w,
                      .sum = sum,
                      .out = out});
    return {sum.ToFloat(), out.ToFloat()};
  }

  Floats Gated(const Floats& x, const Floats& gate, const Floats& weight, DType type,
               bool with_squares) {
    const int64_t width = std::ssize(weight), rows = std::ssize(x) / width;
    const CudaTensor in(queue(), type, {rows, width}, x), g(queue(), type, {rows, width}, gate);
    const CudaTensor w(queue(), DType::kF32, {width}, weight);
    const CudaTensor squares(queue(), DType::kF32, {rows}), out(queue(), type, {rows, width});
    if (with_squares) SumOfSquares(queue(), in, squares);
    GatedNorm(queue(), {.x = in,
                        .gate = g,
                        .weight = w,
                        .squares = with_squares ? squares.tensor() : Tensor(),
                        .width = width,
                        .out = out});
    return out.ToFloat();
  }

 private:
  std::unique_ptr<Queue> queue_;
};

TEST_F(NormCudaTest, AgreesWithTheDoubleReferenceInEveryMixOfTypes) {
  for (const NormCase& c : Cases()) {
    const int64_t n = c.rows * c.width;
    const Floats x = RandomBF16s(1, n), branch = RandomBF16s(2, n);
    const Floats weight = RandomFloats(3, c.width);
    for (const bool has_branch : {false, true}) {
      const Doubles sum =
          has_branch ? ReferenceAdd(x, branch, kAlpha, kBeta) : Doubles(x.begin(), x.end());
      const Doubles normed =
          ByRow(sum, c.width, [&](auto row, int64_t) { return ReferenceNorm(row, weight, 1e-5); });
      for (int mix = 0; mix < 16; ++mix) {
        if (c.rows > 100 && mix != 6 && mix != 11 && mix != 15) continue;
        SCOPED_TRACE(std::to_string(c.width) + " numbers, mix " + std::to_string(mix));
        const Types types{kTypes[mix & 1], kTypes[mix >> 1 & 1], kTypes[mix >> 2 & 1],
                          kTypes[mix >> 3 & 1]};
        const SumAndNorm got = AddAndNorm(x, has_branch ? branch : Floats(), weight, types);
        EXPECT_LE(RelativeError(got.sum, sum), Limit(types.sum));
        EXPECT_LE(RelativeError(got.out, normed), Limit(types.out));
      }
    }
  }
}

TEST_F(NormCudaTest, GatedNormAgreesWithTheDoubleReference) {
  for (const NormCase& c : Cases()) {
    const int64_t n = c.rows * c.width;
    const Floats x = RandomBF16s(4, n), gate = RandomBF16s(5, n);
    const Floats weight = RandomFloats(6, c.width);
    const Doubles want = ByRow({x.begin(), x.end()}, c.width, [&](auto row, int64_t at) {
      return ReferenceGatedNorm(row, std::span(gate).subspan(at, c.width), weight, 1e-6);
    });
    for (const DType type : kTypes) {
      for (const bool with_squares : {false, true}) {
        SCOPED_TRACE(ToString(type) + ", " + std::to_string(c.width) + " numbers");
        EXPECT_LE(RelativeError(Gated(x, gate, weight, type, with_squares), want), Limit(type));
      }
    }
  }
}

TEST_F(NormCudaTest, SquaresAndResidualsAgreeWithTheDoubleReference) {
  for (const NormCase& c : Cases()) {
    const int64_t n = c.rows * c.width;
    const Floats x = RandomBF16s(7, n), branch = RandomBF16s(8, n);
    Doubles squares(static_cast<size_t>(c.rows));
    for (int64_t i = 0; i < n; ++i) {
      squares[static_cast<size_t>(i / c.width)] +=
          static_cast<double>(x[static_cast<size_t>(i)]) * x[static_cast<size_t>(i)];
    }
    for (const DType type : kTypes) {
      SCOPED_TRACE(ToString(type) + ", " + std::to_string(c.width) + " numbers");
      const CudaTensor in(queue(), type, {c.rows, c.width}, x);
      const CudaTensor added(queue(), type, {c.rows, c.width}, branch);
      const CudaTensor total(queue(), DType::kF32, {c.rows});
      const CudaTensor sum(queue(), type, {c.rows, c.width});
      SumOfSquares(queue(), in, total);
      EXPECT_LE(RelativeError(total.ToFloat(), squares), 1e-6);
      AddResidual(queue(), {.x = in, .branch = added, .alpha = kAlpha, .beta = kBeta, .sum = sum});
      EXPECT_LE(RelativeError(sum.ToFloat(), ReferenceAdd(x, branch, kAlpha, kBeta)), Limit(type));
    }
  }
}

TEST_F(NormCudaTest, ResultsMayReplaceWhatTheyComeFrom) {
  for (const int64_t width : {6144, 77}) {
    SCOPED_TRACE(width);
    constexpr int64_t kRows = 5;
    const Floats x = RandomBF16s(9, kRows * width), branch = RandomBF16s(10, kRows * width);
    const Floats weight = RandomFloats(11, width);
    const CudaTensor w(queue(), DType::kF32, {width}, weight);
    const SumAndNorm want =
        AddAndNorm(x, branch, weight, {DType::kBF16, DType::kBF16, DType::kBF16, DType::kBF16});
    const auto run = [&](const Tensor& a, const Tensor& b, const Tensor& sum, const Tensor& out) {
      AddNorm(queue(), {a, b, kAlpha, kBeta, w, 1e-5f, sum, out});
    };
    const auto tensor = [&](const Floats& values) {
      return CudaTensor(queue(), DType::kBF16, {kRows, width}, values);
    };
    const CudaTensor a = tensor(x), b = tensor(branch), c = tensor(x), d = tensor(branch);
    const CudaTensor out(queue(), DType::kBF16, {kRows, width});
    run(a, b, a, out);
    EXPECT_TRUE(SameBits(a.ToFloat(), want.sum) && SameBits(out.ToFloat(), want.out));
    run(c, d, d, c);
    EXPECT_TRUE(SameBits(d.ToFloat(), want.sum) && SameBits(c.ToFloat(), want.out));
    // The model's mix: the residual in float32, its norm in bf16 in the place of x.
    const Types mix{DType::kBF16, DType::kBF16, DType::kF32, DType::kBF16};
    const SumAndNorm mixed = AddAndNorm(x, branch, weight, mix);
    const CudaTensor f = tensor(x), residual(queue(), DType::kF32, {kRows, width});
    run(f, b, residual, f);
    EXPECT_TRUE(SameBits(residual.ToFloat(), mixed.sum) && SameBits(f.ToFloat(), mixed.out));
    // A sum that nobody reads need not be kept.
    const CudaTensor g = tensor(x);
    run(g, b, {}, g);
    EXPECT_TRUE(SameBits(g.ToFloat(), mixed.out));
    AddNorm(queue(), {.x = residual, .weight = w, .sum = residual, .out = f});
    EXPECT_TRUE(SameBits(residual.ToFloat(), mixed.sum));
    EXPECT_TRUE(SameBits(
        f.ToFloat(),
        AddAndNorm(mixed.sum, {}, weight, {DType::kF32, {}, DType::kF32, DType::kBF16}).out));
    const CudaTensor e = tensor(x);
    GatedNorm(queue(), {.x = e, .gate = b, .weight = w, .width = width, .out = e});
    EXPECT_TRUE(SameBits(e.ToFloat(), Gated(x, branch, weight, DType::kBF16, false)));
  }
}

TEST_F(NormCudaTest, ARowHasTheSameBitsAloneAndAmongOthers) {
  constexpr int64_t kRows = 40, kWidth = 1000;
  const Floats x = RandomBF16s(12, kRows * kWidth), weight = RandomFloats(13, kWidth);
  const Types types{DType::kBF16, DType::kBF16, DType::kF32, DType::kF32};
  const SumAndNorm all = AddAndNorm(x, x, weight, types);
  const Floats gated = Gated(x, x, weight, DType::kF32, true);
  const Floats inside = Gated(x, x, weight, DType::kF32, false);
  for (const int64_t r : {0, 17, 39}) {
    const auto row = [&](const Floats& of) {
      return Floats(of.begin() + r * kWidth, of.begin() + (r + 1) * kWidth);
    };
    EXPECT_TRUE(SameBits(AddAndNorm(row(x), row(x), weight, types).out, row(all.out)));
    EXPECT_TRUE(SameBits(Gated(row(x), row(x), weight, DType::kF32, true), row(gated)));
    EXPECT_TRUE(SameBits(Gated(row(x), row(x), weight, DType::kF32, false), row(inside)));
  }
}

TEST_F(NormCudaTest, RowsMayBeStridedAndWhatLiesBetweenThemIsLeftAlone) {
  for (const int64_t width : {64, 21}) {
    constexpr int64_t kWide = 80, kRows = 4;
    const Floats wide = RandomBF16s(14, kRows * kWide), weight = RandomFloats(15, width);
    const CudaTensor given(queue(), DType::kBF16, {kRows, kWide}, wide);
    const CudaTensor w(queue(), DType::kF32, {width}, weight);
    const CudaTensor sum(queue(), DType::kF32, {kRows, kWide});
    const CudaTensor out(queue(), DType::kBF16, {kRows, kWide});
    const auto part = [&](const CudaTensor& t) {
      Tensor p = t;
      p.data = static_cast<std::byte*>(p.data) + 8 * SizeOf(p.dtype);
      p.shape[1] = width;
      return p;
    };
    AddNorm(queue(), {.x = part(given), .weight = w, .sum = part(sum), .out = part(out)});
    Floats rows, normed;
    const Floats got = out.ToFloat();
    int64_t untouched = 0;
    for (const float v : got) untouched += std::isnan(v);
    for (int64_t r = 0; r < kRows; ++r) {
      rows.insert(rows.end(), wide.begin() + r * kWide + 8, wide.begin() + r * kWide + 8 + width);
      normed.insert(normed.end(), got.begin() + r * kWide + 8, got.begin() + r * kWide + 8 + width);
    }
    EXPECT_TRUE(SameBits(
        normed, AddAndNorm(rows, {}, weight, {DType::kBF16, {}, DType::kF32, DType::kBF16}).out));
    EXPECT_EQ(untouched, kRows * (kWide - width));
  }
}

TEST_F(NormCudaTest, NoRowsAreNoWork) {
  const Floats weight(16, 1.0f);
  EXPECT_TRUE(AddAndNorm({}, {}, weight, {}).out.empty());
  EXPECT_TRUE(Gated({}, {}, weight, DType::kBF16, true).empty());
}

TEST_F(NormCudaTest, RowsMayHoldMoreThanTwoToThe31Numbers) {
  constexpr int64_t kWidth = 6144, kRows = (int64_t{1} << 31) / kWidth + 2;
  const Floats last = RandomBF16s(16, kWidth), weight = RandomFloats(17, kWidth);
  const Buffer in(kRows * kWidth * 2, Device::kCuda), out(kRows * kWidth * 2, Device::kCuda);
  const CudaTensor row(queue(), DType::kBF16, {1, kWidth}, last);
  const CudaTensor w(queue(), DType::kF32, {kWidth}, weight);
  queue().CopyOnDevice(in.data() + (kRows - 1) * kWidth * 2, row.tensor().data, kWidth * 2);
  const Tensor x(DType::kBF16, in.data(), {kRows, kWidth});
  const Tensor to(DType::kBF16, out.data(), {kRows, kWidth});
  AddNorm(queue(), {.x = x, .weight = w, .sum = x, .out = to});
  const CudaTensor got(queue(), DType::kBF16, {1, kWidth});
  queue().CopyOnDevice(got.tensor().data, out.data() + (kRows - 1) * kWidth * 2, kWidth * 2);
  EXPECT_TRUE(
      SameBits(got.ToFloat(),
               AddAndNorm(last, {}, weight, {DType::kBF16, {}, DType::kBF16, DType::kBF16}).out));
}

}  // namespace
}  // namespace mm01
