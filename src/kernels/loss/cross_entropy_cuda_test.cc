// The head's product and its loss on a GPU against the formula in double.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "device/device.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/cross_entropy_ref.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/gradients.h"

namespace mm01 {
namespace {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

struct Case {
  int64_t rows, width, vocabulary, used;
};

constexpr Case kCases[] = {{1, 8, 16, 16},       {64, 24, 75, 70},      {65, 16, 1009, 1009},
                           {515, 20, 75, 70},    {300, 32, 9000, 8195}, {37, 64, 40'000, 39'990},
                           {50, 16, 8192, 8192}, {50, 16, 8200, 8190}};

class CrossEntropyCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }

 private:
  std::unique_ptr<Queue> queue_;
};

std::vector<int32_t> Targets(int64_t rows, int64_t used) {
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < rows; ++t) {
    targets.push_back(t % 7 == 3 ? -1 : static_cast<int32_t>(t * 7919 % used));
  }
  return targets;
}

// Deviation 1/4, so that no logit is far above the others.
Floats Values(DType type, uint64_t stream, int64_t n) {
  Floats x = type == DType::kBF16 ? RandomBF16s(stream, n) : RandomFloats(stream, n);
  for (float& v : x) v *= 0.25f;
  return x;
}

TEST_F(CrossEntropyCuda, FollowsTheReference) {
  for (const Case& c : kCases) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(testing::Message()
                   << c.rows << " rows, vocabulary " << c.used << ", " << ToString(type));
      const Floats x = Values(type, 1, c.rows * c.width);
      const Floats weight = Values(type, 2, c.vocabulary * c.width);
      const std::vector<int32_t> targets = Targets(c.rows, c.used);
      CrossEntropyReference want{ToDoubles(x), ToDoubles(weight), targets, c.width, c.used};
      const double loss = want.Loss();
      const CudaTensor x_there(queue(), type, {c.rows, c.width}, x);
      const CudaTensor weight_there(queue(), type, {c.vocabulary, c.width}, weight);
      const CudaTensor d_x(queue(), type, {c.rows, c.width});
      const CudaTensor d_weight(queue(), DType::kF32, {c.vocabulary, c.width},
                                Floats(static_cast<size_t>(c.vocabulary * c.width)));
      LinearCrossEntropyArgs args{.x = x_there,
                                  .weight = weight_there,
                                  .targets = targets,
                                  .vocab_used = c.used,
                                  .scale = 0.25,
                                  .d_x = {},
                                  .d_weight = {}};
      const CrossEntropy forward = LinearCrossEntropy(queue(), args);
      args.d_x = d_x;
      args.d_weight = d_weight;
      const CrossEntropy got = LinearCrossEntropy(queue(), args);
      const CrossEntropy again = LinearCrossEntropy(queue(), args);
      EXPECT_NEAR(got.sum, loss, 1e-5 * loss);
      EXPECT_EQ(forward.sum, got.sum);
      EXPECT_EQ(again.sum, got.sum);
      EXPECT_EQ(got.counted, c.rows - (c.rows + 3) / 7);
      for (double& d : want.d_x) d *= 0.25;
      for (double& d : want.d_weight) d *= 2 * 0.25;
      const double limit = type == DType::kF32 ? 1e-5 : 3e-3;
      EXPECT_LE(RelativeError(d_x.ToFloat(), want.d_x), limit);
      EXPECT_LE(RelativeError(d_weight.ToFloat(), want.d_weight), limit);
    }
  }
}

// More rows than one chunk takes are as two calls, the second with what is left.
TEST_F(CrossEntropyCuda, ChunksAreCallsOfTheirRows) {
  constexpr int64_t kUsed = 8192, kWidth = 16, kChunk = kLossLogits / kUsed, kRows = kChunk + 300;
  const CudaTensor x(queue(), DType::kBF16, {kRows, kWidth},
                     Values(DType::kBF16, 1, kRows * kWidth));
  const CudaTensor weight(queue(), DType::kBF16, {kUsed, kWidth},
                          Values(DType::kBF16, 2, kUsed * kWidth));
  const std::vector<int32_t> targets = Targets(kRows, kUsed);
  struct Gradients {
    CudaTensor x, weight;
    double loss = 0.0;

    explicit Gradients(Queue& queue)
        : x(queue, DType::kBF16, {kRows, kWidth}),
          weight(queue, DType::kF32, {kUsed, kWidth}, Floats(kUsed * kWidth)) {}
  };
  const auto add = [&](Gradients& to, int64_t begin, int64_t end) {
    const std::span<const int32_t> some(targets.begin() + begin, targets.begin() + end);
    to.loss += LinearCrossEntropy(queue(), {.x = x.tensor().Rows(begin, end),
                                            .weight = weight,
                                            .targets = some,
                                            .vocab_used = kUsed,
                                            .scale = 0.25,
                                            .d_x = to.x.tensor().Rows(begin, end),
                                            .d_weight = to.weight})
                   .sum;
  };
  Gradients once(queue()), twice(queue());
  add(once, 0, kRows);
  add(twice, 0, kChunk);
  add(twice, kChunk, kRows);
  EXPECT_NEAR(once.loss, twice.loss, 1e-12 * twice.loss);
  EXPECT_TRUE(SameBits(once.x.ToFloat(), twice.x.ToFloat()));
  EXPECT_TRUE(SameBits(once.weight.ToFloat(), twice.weight.ToFloat()));
}

}  // namespace
}  // namespace mm01
