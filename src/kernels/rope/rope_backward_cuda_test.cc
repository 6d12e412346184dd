// The gradient of Rope on a GPU.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/rope/rope_cases.h"
#include "kernels/rope/rope_cuda.h"
#include "testing/arrays.h"
#include "testing/cuda_test.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;
using RopeBackwardCudaTest = CudaTest;

TEST_F(RopeBackwardCudaTest, TurnsByTheNegativeAngle) {
  constexpr int64_t kRows = 37;
  for (const RopeCase& c : kRopeCases) {
    const int64_t half = c.rotary / 2, n = kRows * c.heads * c.dim;
    // Any cosines and sines: the matrix is transposed.
    const Floats cos = RandomFloats(1, kRows * half), sin = RandomFloats(2, kRows * half);
    const Floats x = RandomBF16s(3, n);
    std::vector<double> want(x.begin(), x.end());
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t h = 0; h < c.heads; ++h) {
        double* a = want.data() + (r * c.heads + h) * c.dim;
        for (int64_t j = 0; j < half; ++j) {
          const double u = a[j], v = a[j + half];
          const auto at = static_cast<size_t>(r * half + j);
          const auto cosine = static_cast<double>(cos[at]), sine = static_cast<double>(sin[at]);
          a[j] = u * cosine + v * sine;
          a[j + half] = v * cosine - u * sine;
        }
      }
    }
    const CudaTensor cosines(queue(), DType::kF32, {kRows, half}, cos);
    const CudaTensor sines(queue(), DType::kF32, {kRows, half}, sin);
    for (const DType type : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(std::string(c.name) + ", " + ToString(type));
      const CudaTensor d_x(queue(), type, {kRows, c.heads, c.dim}, x);
      cuda::Rope(queue(), d_x, cosines, sines, true);
      EXPECT_LE(RelativeError(d_x.ToFloat(), want), type == DType::kF32 ? 1e-6 : 3e-3);
    }
  }
}

}  // namespace
}  // namespace mm01
