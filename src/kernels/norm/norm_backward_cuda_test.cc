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
using Doubles = std::vector<double>;

struct Types {
  DType x, gradient;
};

struct Results {
  Floats d_x, d_gate, d_weight;
};

class NormBackwardCudaTest : public CudaTest {
 protected:
  // d_weight holds ones before.
  Results Run(const NormCase& c, bool gated, const Types& types) {
    const int64_t n = c.rows * c.width;
    const CudaTensor x = Rows(types.x, RandomBF16s(1, n), c.width);
    const CudaTensor gate = Rows(types.gradient, RandomBF16s(3, n), c.width);
    const CudaTensor d_out = Rows(types.gradient, RandomBF16s(4, n), c.width);
    const CudaTensor weight = Flat(RandomFloats(2, c.width));
    const CudaTensor d_weight = Flat(Floats(static_cast<size_t>(c.width), 1.0f));
    const CudaTensor d_x(queue(), types.gradient, {c.rows, c.width});
    const CudaTensor d_gate(queue(), types.gradient, {c.rows, c.width});
    if (gated) {
      cuda::GatedNormBackward(queue(), {x, gate, weight, 1e-6f, d_out, d_x, d_gate, d_weight});
    } else {
      cuda::NormBackward(queue(), {x, weight, 1e-5f, d_out, d_x, d_weight});
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
    for (const bool gated : {false, true}) {
      const int64_t n = c.rows * c.width;
      const Doubles x = ToDoubles(RandomBF16s(1, n)), weight = ToDoubles(RandomFloats(2, c.width));
      const Doubles gate = ToDoubles(RandomBF16s(3, n)), d_out = ToDoubles(RandomBF16s(4, n));
      Doubles d_x, d_gate, d_weight(static_cast<size_t>(c.width), 1.0);
      for (int64_t t = 0; t < c.rows; ++t) {
        const auto row = [&](const Doubles& m) {
          return Doubles(m.begin() + t * c.width, m.begin() + (t + 1) * c.width);
        };
        GatedNormReference r{row(x), gated ? row(gate) : Doubles(), weight, gated ? 1e-6 : 1e-5};
        r.Backward(row(d_out));
        d_x.insert(d_x.end(), r.d_x.begin(), r.d_x.end());
        d_gate.insert(d_gate.end(), r.d_gate.begin(), r.d_gate.end());
        for (size_t i = 0; i < d_weight.size(); ++i) d_weight[i] += r.d_weight[i];
      }
      for (const Types& types : {Types{DType::kF32, DType::kF32},
                                 {DType::kF32, DType::kBF16},
                                 {DType::kBF16, DType::kBF16}}) {
        SCOPED_TRACE(ToString(types.x) + " and " + ToString(types.gradient) + ", " +
                     std::to_string(c.rows) + " x " + std::to_string(c.width) +
                     (gated ? ", gated" : ""));
        const Results got = Run(c, gated, types);
        const double limit = GradientLimit(types.gradient, n);
        if (c.width > 1) {  // a single number's norm has no slope but rounding
          EXPECT_LE(RelativeError(got.d_x, d_x), limit);
        }
        EXPECT_LE(RelativeError(got.d_weight, d_weight), 1e-5);
        if (gated) {
          EXPECT_LE(RelativeError(got.d_gate, d_gate), limit);
        }
      }
    }
  }
}

TEST_F(NormBackwardCudaTest, AnotherRunHasTheSameBits) {
  for (const bool gated : {false, true}) {
    const NormCase c{1000, 264};
    const Types types{DType::kF32, DType::kBF16};
    const Results a = Run(c, gated, types), b = Run(c, gated, types);
    EXPECT_TRUE(SameBits(b.d_x, a.d_x));
    EXPECT_TRUE(SameBits(b.d_weight, a.d_weight));
    if (gated) {
      EXPECT_TRUE(SameBits(b.d_gate, a.d_gate));
    }
  }
}

TEST_F(NormBackwardCudaTest, TheGradientMayTakeTheOutputsPlace) {
  const NormCase c{67, 136};
  const Results want = Run(c, false, {DType::kF32, DType::kF32});
  const CudaTensor x = Rows(DType::kF32, RandomBF16s(1, c.rows * c.width), c.width);
  const CudaTensor d = Rows(DType::kF32, RandomBF16s(4, c.rows * c.width), c.width);
  const CudaTensor weight = Flat(RandomFloats(2, c.width));
  const CudaTensor d_weight = Flat(Floats(static_cast<size_t>(c.width), 1.0f));
  cuda::NormBackward(queue(), {x, weight, 1e-5f, d, d, d_weight});
  EXPECT_TRUE(SameBits(d.ToFloat(), want.d_x));
  EXPECT_TRUE(SameBits(d_weight.ToFloat(), want.d_weight));
}

}  // namespace
}  // namespace mm01
