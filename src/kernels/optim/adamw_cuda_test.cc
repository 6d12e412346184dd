// AdamW and the sums of squares on a GPU against the formulas in double.
#include "kernels/optim/adamw_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "testing/arrays.h"
#include "testing/cuda_test.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;
using AdamWCudaTest = CudaTest;

Tensor Part(const Tensor& x, int64_t begin, int64_t end) {
  return Tensor(static_cast<float*>(x.data) + begin, {end - begin});
}

TEST_F(AdamWCudaTest, FollowsTheFormulaInDouble) {
  for (const int64_t n : {1, 63, 16'384, 70'001}) {
    SCOPED_TRACE(n);
    const Floats start = RandomFloats(1, n), zeros(static_cast<size_t>(n));
    const CudaTensor value = Flat(start), m = Flat(zeros), v = Flat(zeros);
    std::vector<double> want(start.begin(), start.end()), wm(start.size()), wv(start.size());
    for (int64_t step = 1; step <= 5; ++step) {
      const Floats gradient = RandomFloats(static_cast<uint64_t>(10 + step), n);
      const CudaTensor g = Flat(gradient);
      const AdamWArgs a{.value = value,
                        .gradient = g,
                        .m = m,
                        .v = v,
                        .learning_rate = 1e-2,
                        .weight_decay = 0.1,
                        .step = step,
                        .gradient_scale = 0.5};
      cuda::AdamW(queue(), a);
      for (size_t i = 0; i < want.size(); ++i) {
        const double x = 0.5 * static_cast<double>(gradient[i]);
        wm[i] = a.beta1 * wm[i] + (1 - a.beta1) * x;
        wv[i] = a.beta2 * wv[i] + (1 - a.beta2) * x * x;
        const auto s = static_cast<double>(step);
        const double up = wm[i] / (1 - std::pow(a.beta1, s));
        const double root = std::sqrt(wv[i] / (1 - std::pow(a.beta2, s)));
        want[i] -= a.learning_rate * (up / (root + a.eps) + a.weight_decay * want[i]);
      }
    }
    EXPECT_LE(RelativeError(value.ToFloat(), want), 1e-6);
    EXPECT_LE(RelativeError(m.ToFloat(), wm), 1e-6);
    EXPECT_LE(RelativeError(v.ToFloat(), wv), 1e-6);
  }
}

TEST_F(AdamWCudaTest, ManyTensorsAreTheSameAsEach) {
  constexpr int64_t kN = 50'000;
  const std::vector<int64_t> cuts = {0, 7, 7, 16'384 + 7, 40'000, kN};
  const Floats start = RandomFloats(1, kN), gradient = RandomFloats(2, kN), zeros(kN);
  const CudaTensor g = Flat(gradient), all = Flat(start), m = Flat(zeros), v = Flat(zeros);
  const CudaTensor each = Flat(start), m1 = Flat(zeros), v1 = Flat(zeros);
  std::vector<AdamWArgs> many;
  std::vector<Tensor> parts;
  double sum = 0.0;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const auto part = [&](const Tensor& x) { return Part(x, cuts[i], cuts[i + 1]); };
    AdamWArgs a{.value = part(each),
                .gradient = part(g),
                .m = part(m1),
                .v = part(v1),
                .learning_rate = 0.1 * static_cast<double>(i + 1),
                .weight_decay = i % 2 ? 0.1 : 0.0};
    cuda::AdamW(queue(), a);
    a.value = part(all);
    a.m = part(m);
    a.v = part(v);
    many.push_back(a);
    parts.push_back(part(g));
    sum += cuda::SumOfSquaresOf(queue(), parts.back());
  }
  cuda::AdamWMany(queue(), many);
  EXPECT_TRUE(SameBits(all.ToFloat(), each.ToFloat()));
  EXPECT_TRUE(SameBits(m.ToFloat(), m1.ToFloat()));
  EXPECT_TRUE(SameBits(v.ToFloat(), v1.ToFloat()));
  EXPECT_EQ(cuda::SumOfSquaresOfMany(queue(), parts), sum);
}

TEST_F(AdamWCudaTest, SquaresAreAddedInDouble) {
  Floats x(100'000, 1e-4f);
  x[70'000] = 1e4f;  // float32 would lose the others beside this one
  const double small = static_cast<double>(1e-4f);
  EXPECT_NEAR(cuda::SumOfSquaresOf(queue(), Flat(x)), 1e8 + 99'999 * small * small, 1e-4);
  EXPECT_EQ(cuda::SumOfSquaresOf(queue(), Flat({})), 0.0);
  EXPECT_EQ(cuda::SumOfSquaresOfMany(queue(), {}), 0.0);
}

}  // namespace
}  // namespace mm01
