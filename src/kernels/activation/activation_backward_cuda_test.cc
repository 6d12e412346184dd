// The gradients of the pointwise functions on a GPU against their formulas in double.
#include "kernels/activation/activation_backward_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/activation/activation_backward_ref.h"
#include "kernels/activation/activation_cases.h"
#include "kernels/activation/activation_cuda.h"
#include "testing/arrays.h"
#include "testing/cuda_test.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using ActivationBackwardCudaTest = CudaTest;

std::vector<ActivationCase> Cases() {
  std::vector<ActivationCase> cases(std::begin(kActivationCases), std::end(kActivationCases));
  cases.push_back({1031, 64});
  cases.push_back({65, 2056});
  return cases;
}

TEST_F(ActivationBackwardCudaTest, FollowTheReference) {
  for (const ActivationCase& c : Cases()) {
    const int64_t n = c.rows * c.width;
    Floats x = RandomBF16s(1, n);
    for (float& v : x) v *= 4.0f;
    const Floats up = RandomBF16s(2, n), dy = RandomBF16s(3, n);
    Doubles silu, glu, d_x, d_gate, d_up, dots(static_cast<size_t>(c.rows));
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t row = i / static_cast<size_t>(c.width);
      const SwiGluGradients g = ReferenceSwiGluBackward(x[i], up[i], dy[i]);
      silu.push_back(ReferenceSilu(x[i]));
      glu.push_back(ReferenceSilu(x[i]) * static_cast<double>(up[i]));
      d_x.push_back(static_cast<double>(dy[i]) * ReferenceSiluSlope(x[i]));
      d_gate.push_back(g.d_gate);
      d_up.push_back(g.d_up);
      dots[row] += static_cast<double>(dy[i]) * glu.back();
    }
    for (const auto& [type, other] : {std::pair{DType::kF32, DType::kF32},
                                      {DType::kBF16, DType::kBF16},
                                      {DType::kBF16, DType::kF32},
                                      {DType::kF32, DType::kBF16}}) {
      SCOPED_TRACE(ToString(type) + " and " + ToString(other) + ", " + std::to_string(c.rows) +
                   " x " + std::to_string(c.width));
      const double limit = GradientLimit(other, n);
      const CudaTensor gate = Rows(type, x, c.width), ups = Rows(type, up, c.width);
      const CudaTensor d_out = Rows(type, dy, c.width);
      const auto made = [&](DType t) { return CudaTensor(queue(), t, {c.rows, c.width}); };
      const CudaTensor a = made(other), b = made(other), dx = made(other), dg = made(other);
      const CudaTensor du = made(other), o = made(other), sums(queue(), DType::kF32, {c.rows});
      cuda::SiluOf(queue(), {gate, a});
      cuda::SwiGluOf(queue(), {gate, ups, b});
      cuda::SiluBackward(queue(), {gate, d_out, dx});
      cuda::SwiGluBackward(queue(), {.gate = gate,
                                     .up = ups,
                                     .d_out = d_out,
                                     .d_gate = dg,
                                     .d_up = du,
                                     .out = o,
                                     .dots = sums});
      EXPECT_LE(RelativeError(a.ToFloat(), silu), limit);
      EXPECT_LE(RelativeError(b.ToFloat(), glu), limit);
      EXPECT_LE(RelativeError(dx.ToFloat(), d_x), limit);
      EXPECT_LE(RelativeError(dg.ToFloat(), d_gate), limit);
      EXPECT_LE(RelativeError(du.ToFloat(), d_up), limit);
      EXPECT_LE(RelativeError(o.ToFloat(), glu), limit);
      EXPECT_LE(RelativeError(sums.ToFloat(), dots), 1e-5);
    }
  }
}

TEST_F(ActivationBackwardCudaTest, ForwardHasTheBitsOfThePlaceOnes) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const Floats x = RandomBF16s(1, 77 * 48), y = RandomBF16s(2, 77 * 48);
    const CudaTensor a = Rows(type, x, 48), b = Rows(type, x, 48), up = Rows(type, y, 48);
    const CudaTensor silu = Rows(type, x, 48), glu = Rows(type, x, 48);
    cuda::SiluOf(queue(), {a, silu});
    cuda::SwiGluOf(queue(), {a, up, glu});
    cuda::Silu(queue(), a);
    cuda::SwiGlu(queue(), b, up);
    EXPECT_TRUE(SameBits(silu.ToFloat(), a.ToFloat()));
    EXPECT_TRUE(SameBits(glu.ToFloat(), b.ToFloat()));
  }
}

// Gradients may take d_out's place, rows may be strided, and h may be left out.
TEST_F(ActivationBackwardCudaTest, InPlaceStridedAndGradientsAlone) {
  constexpr int64_t kRows = 33, kWidth = 40;
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const Floats x = RandomBF16s(1, kRows * kWidth), y = RandomBF16s(2, kRows * kWidth);
    const Floats dy = RandomBF16s(3, kRows * kWidth);
    const CudaTensor gate = Rows(type, x, kWidth), up = Rows(type, y, kWidth);
    const CudaTensor d_out = Rows(type, dy, kWidth);
    const auto made = [&] { return CudaTensor(queue(), type, {kRows, kWidth}); };
    const CudaTensor dg = made(), du = made(), out = made(),
                     wide(queue(), type, {kRows, 2, kWidth});
    SwiGluBackwardArgs a{
        .gate = gate, .up = up, .d_out = d_out, .d_gate = dg, .d_up = du, .out = out};
    cuda::SwiGluBackward(queue(), a);
    Tensor strided(type, wide.tensor().data, {kRows, kWidth});
    strided.stride[0] = 2 * kWidth;
    a.out = Tensor();
    a.d_gate = d_out;
    a.d_up = strided;
    cuda::SwiGluBackward(queue(), a);
    EXPECT_TRUE(SameBits(d_out.ToFloat(), dg.ToFloat()));
    const Floats all = wide.ToFloat(), want = du.ToFloat();
    for (int64_t r = 0; r < kRows; ++r) {
      const Floats got(all.begin() + 2 * r * kWidth, all.begin() + (2 * r + 1) * kWidth);
      const Floats row(want.begin() + r * kWidth, want.begin() + (r + 1) * kWidth);
      EXPECT_TRUE(SameBits(got, row));
      EXPECT_TRUE(std::isnan(all[static_cast<size_t>((2 * r + 1) * kWidth)]));
    }
  }
}

TEST_F(ActivationBackwardCudaTest, FarOutAndNoRows) {
  const CudaTensor x = Rows(DType::kF32, {200, -200, 1e30f, -1e30f}, 4);
  const CudaTensor ones = Rows(DType::kF32, Floats(4, 1.0f), 4), d_x(queue(), DType::kF32, {1, 4});
  cuda::SiluBackward(queue(), {x, ones, d_x});
  ExpectAllNear(d_x.ToFloat(), Floats{1, 0, 1, 0}, 1e-6);
  const CudaTensor none(queue(), DType::kBF16, {0, 16});
  cuda::SiluOf(queue(), {none, none});
  cuda::SwiGluBackward(
      queue(),
      {.gate = none, .up = none, .d_out = none, .d_gate = none, .d_up = none, .out = none});
}

}  // namespace
}  // namespace mm01
