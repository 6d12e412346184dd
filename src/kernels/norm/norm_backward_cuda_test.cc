// The gradients of the norms on a GPU against their formulas in double.
#include "kernels/norm/norm_backward_cuda.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/norm/norm_backward_ref.h"
#include "kernels/norm/norm_cases.h"
#include "testing/arrays.h"
#include "testing/cuda_test.h"
#include "testing/gradients.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

struct Types {
  DType x, gradient;
};

struct Results {
  Floats d_x, d_gate, d_weight;
};

class NormBackwardCudaTest : public CudaTest {
 protected:
  // d_weight holds ones before.
  Results Run(const NormCase& c, NormKind kind, const Types& types) {
    const int64_t n = c.rows * c.width;
    const CudaTensor x = Rows(types.x, RandomBF16s(1, n), c.width);
    const CudaTensor gate = Rows(types.gradient, RandomBF16s(3, n), c.width);
    const CudaTensor d_out = Rows(types.gradient, RandomBF16s(4, n), c.width);
    const CudaTensor carried = Rows(types.gradient, RandomBF16s(5, n), c.width);
    const CudaTensor weight = Flat(RandomFloats(2, c.width));
    const CudaTensor d_weight = Flat(Floats(static_cast<size_t>(c.width), 1.0f));
    const CudaTensor d_x(queue(), types.gradient, {c.rows, c.width});
    const CudaTensor d_gate(queue(), types.gradient, {c.rows, c.width});
    if (kind == NormKind::kGated) {
      cuda::GatedNormBackward(queue(), {x, gate, weight, 1e-6f, d_out, d_x, d_gate, d_weight});
    } else {
      CarriedGradient residual{carried, kCarriedAlpha, kind == NormKind::kCarriesNorm};
      if (kind == NormKind::kPlain) residual.rows = {};
      cuda::NormBackward(queue(), {x, weight, 1e-5f, d_out, d_x, d_weight, residual});
    }
    return {d_x.ToFloat(), d_gate.ToFloat(), d_weight.ToFloat()};
  }
};

TEST_F(NormBackwardCudaTest, FollowsTheReferenceAndAddsToTheWeight) {
  std::vector<NormCase> cases(std::begin(kNormCases), std::end(kNormCases));
  for (const NormCase c : {NormCase{3, 8192}, {2, 8200}, {300, 256}, {131, 50}, {64, 1024}}) {
    cases.push_back(c);
  }
  for (const NormCase& c : cases) {
    for (const NormKind kind : kNormKinds) {
      const int64_t n = c.rows * c.width;
      const NormGradients want(kind, c.rows, RandomBF16s(1, n), RandomFloats(2, c.width),
                               RandomBF16s(3, n), RandomBF16s(4, n), RandomBF16s(5, n));
      for (const Types& types : {Types{DType::kF32, DType::kF32},
                                 {DType::kF32, DType::kBF16},
                                 {DType::kBF16, DType::kBF16}}) {
        SCOPED_TRACE(testing::Message()
                     << ToString(types.x) << " and " << ToString(types.gradient) << ", " << c.rows
                     << " x " << c.width << ", kind " << static_cast<int>(kind));
        const Results got = Run(c, kind, types);
        const double limit = GradientLimit(types.gradient, n);
        if (c.width > 1) {  // a single number's norm has no slope but rounding
          EXPECT_LE(RelativeError(got.d_x, want.d_x), limit);
        }
        EXPECT_LE(RelativeError(got.d_weight, want.d_weight), 1e-5);
        if (kind == NormKind::kGated) {
          EXPECT_LE(RelativeError(got.d_gate, want.d_gate), limit);
        }
      }
    }
  }
}

TEST_F(NormBackwardCudaTest, AnotherRunHasTheSameBits) {
  for (const NormKind kind : kNormKinds) {
    const NormCase c{1000, 264};
    const Types types{DType::kF32, DType::kBF16};
    const Results a = Run(c, kind, types), b = Run(c, kind, types);
    EXPECT_TRUE(SameBits(b.d_x, a.d_x));
    EXPECT_TRUE(SameBits(b.d_weight, a.d_weight));
    if (kind == NormKind::kGated) {
      EXPECT_TRUE(SameBits(b.d_gate, a.d_gate));
    }
  }
}

// That of d_out or of what is carried; rows in registers and of any kind.
TEST_F(NormBackwardCudaTest, TheGradientMayTakeAnInputsPlace) {
  for (const NormCase& c : {NormCase{67, 136}, {67, 50}, {40, 1024}}) {
    for (const NormKind kind :
         {NormKind::kPlain, NormKind::kCarriesNorm, NormKind::kCarriesInput}) {
      const Types types{DType::kF32, DType::kF32};
      const Results want = Run(c, kind, types);
      const int64_t n = c.rows * c.width;
      const CudaTensor x = Rows(types.x, RandomBF16s(1, n), c.width);
      const CudaTensor d_out = Rows(types.gradient, RandomBF16s(4, n), c.width);
      const CudaTensor carried = Rows(types.gradient, RandomBF16s(5, n), c.width);
      const CudaTensor weight = Flat(RandomFloats(2, c.width));
      const CudaTensor d_weight = Flat(Floats(static_cast<size_t>(c.width), 1.0f));
      CarriedGradient residual{carried, kCarriedAlpha, kind == NormKind::kCarriesNorm};
      if (kind == NormKind::kPlain) residual.rows = {};
      const CudaTensor& d_x = kind == NormKind::kPlain ? d_out : carried;
      cuda::NormBackward(queue(), {x, weight, 1e-5f, d_out, d_x, d_weight, residual});
      EXPECT_TRUE(SameBits(d_x.ToFloat(), want.d_x));
      EXPECT_TRUE(SameBits(d_weight.ToFloat(), want.d_weight));
    }
  }
}

}  // namespace
}  // namespace mm01
