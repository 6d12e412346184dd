// Dense products by the grouped kernel against the product in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cuda/dense_gemm.h"
#include "kernels/gemm/gemm_ref.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

class DenseGemmCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto cuda = FindCuda(); !cuda.ok()) GTEST_SKIP() << cuda.status().message();
  }
};

struct Shape {
  int64_t m, n, k;
};

TEST_F(DenseGemmCudaTest, FollowsTheFormula) {
  Queue queue(1, Device::kCuda);
  for (const Shape& s :
       {Shape{1, 128, 64}, Shape{33, 256, 128}, Shape{64, 8, 8}, Shape{97, 136, 72},
        Shape{160, 384, 320}, Shape{192, 520, 64}, Shape{257, 264, 200}, Shape{320, 136, 136},
        Shape{345, 64, 128}, Shape{600, 128, 640}, Shape{2300, 192, 64}, Shape{200, 136, 192},
        Shape{224, 256, 72}, Shape{450, 64, 64}, Shape{570, 136, 64}, Shape{700, 64, 64},
        Shape{1060, 64, 64}, Shape{2001, 64, 64},
        // More tiles than the GPU has multiprocessors, of one stage, two and five.
        Shape{2300, 4096, 8}, Shape{40, 65536, 72}, Shape{33, 33000, 320}}) {
    const Floats x = RandomBF16s(1, s.m * s.k), w = RandomBF16s(2, s.n * s.k);
    std::vector<double> want = ReferenceGemm(x, w, s.m, s.n, s.k);
    std::vector<double> silu;
    for (const double v : want) silu.push_back(v / (1.0 + std::exp(-v)));
    const CudaTensor in(queue, DType::kBF16, {s.m, s.k}, x), by(queue, DType::kBF16, {s.n, s.k}, w);
    for (const DType type : {DType::kF32, DType::kBF16}) {
      for (const auto f : {Activation::kNone, Activation::kSilu}) {
        SCOPED_TRACE(std::to_string(s.m) + " x " + std::to_string(s.n) + " x " +
                     std::to_string(s.k) + " to " + ToString(type));
        const CudaTensor out(queue, type, {s.m, s.n});
        cuda::DenseGemm(queue, {.x = in, .w = by, .out = out, .activation = f});
        EXPECT_LE(RelativeError(out.ToFloat(), f == Activation::kSilu ? silu : want),
                  type == DType::kF32 ? 2e-6 : 2e-3);
      }
    }
  }
}

TEST_F(DenseGemmCudaTest, LongRowsGoInBandsOfOneTile) {
  Queue queue(1, Device::kCuda);
  constexpr int64_t kN = 264, kK = 14656, kM = 330;
  const Floats x = RandomBF16s(7, kM * kK), w = RandomBF16s(8, kN * kK);
  const CudaTensor in(queue, DType::kBF16, {kM, kK}, x), by(queue, DType::kBF16, {kN, kK}, w);
  const CudaTensor out(queue, DType::kBF16, {kM, kN});
  cuda::DenseGemm(queue, {.x = in, .w = by, .out = out});
  EXPECT_LE(RelativeError(out.ToFloat(), ReferenceGemm(x, w, kM, kN, kK)), 2e-3);
}

TEST_F(DenseGemmCudaTest, ARowHasTheSameBitsForEveryM) {
  Queue queue(1, Device::kCuda);
  constexpr int64_t kN = 256, kK = 512, kM = 300;
  const CudaTensor x(queue, DType::kBF16, {kM, kK}, RandomBF16s(3, kM * kK));
  const CudaTensor w(queue, DType::kBF16, {kN, kK}, RandomBF16s(4, kN * kK));
  const CudaTensor all(queue, DType::kF32, {kM, kN});
  cuda::DenseGemm(queue, {.x = x, .w = w, .out = all});
  const Floats want = all.ToFloat();
  for (const int64_t m : {1, 40, 70, 129, 161, 200, 255, 280}) {
    const CudaTensor some(queue, DType::kF32, {m, kN});
    cuda::DenseGemm(queue, {.x = x.tensor().Rows(kM - m, kM), .w = w, .out = some});
    EXPECT_TRUE(SameBits(some.ToFloat(), Floats(want.end() - m * kN, want.end()))) << m;
  }
}

TEST_F(DenseGemmCudaTest, OffsetsPassTwoToTheThirtyFirst) {
  Queue queue(1, Device::kCuda);
  constexpr int64_t kN = 64, kK = 64, kM = 40'000, kStride = 1 << 16;
  const Buffer room_x(kM * kStride * 2, Device::kCuda), room_out(kM * kStride * 2, Device::kCuda);
  Tensor x(room_x.As<bf16>(), {kM, kStride}), out(room_out.As<bf16>(), {kM, kStride});
  const Floats values = RandomBF16s(5, kK), weights = RandomBF16s(6, kN * kK);
  std::vector<bf16> row(kK);
  for (int64_t i = 0; i < kK; ++i) row[i] = ToBF16(values[i]);
  const auto last = static_cast<bf16*>(x.Rows(kM - 1, kM).data);
  queue.CopyToDevice(last, row.data(), kK * 2);
  x.shape[1] = kK;
  out.shape[1] = kN;
  const CudaTensor w(queue, DType::kBF16, {kN, kK}, weights);
  cuda::DenseGemm(queue, {.x = x, .w = w, .out = out});
  std::vector<bf16> got(kN);
  queue.CopyToHost(got.data(), out.Rows(kM - 1, kM).data, kN * 2);
  EXPECT_LE(RelativeError(got, ReferenceGemm(values, weights, 1, kN, kK)), 2e-3);
}

TEST_F(DenseGemmCudaTest, ShapesThatDoNotFitAreABug) {
  Queue queue(1, Device::kCuda);
  const CudaTensor x(queue, DType::kBF16, {4, 64}), w(queue, DType::kBF16, {16, 64}),
      wide(queue, DType::kBF16, {4, 24}), odd_x(queue, DType::kBF16, {4, 60}),
      odd_w(queue, DType::kBF16, {16, 60}), out(queue, DType::kBF16, {4, 16});
  EXPECT_THROW(cuda::DenseGemm(queue, {.x = x, .w = w, .out = wide}), Bug);
  EXPECT_THROW(cuda::DenseGemm(queue, {.x = odd_x, .w = odd_w, .out = out}), Bug);
}

}  // namespace
}  // namespace mm01
