// Tokens chosen on a GPU are those that the CPU chooses from the same logits.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "base/rng.h"
#include "device/device.h"
#include "kernels/sample/sample.h"
#include "kernels/sample/sample_cuda.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;
constexpr float kMasked = -std::numeric_limits<float>::infinity();

class SampleCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }

  std::vector<int32_t> GreedyOf(const Floats& logits, int64_t vocabulary, int64_t used) {
    const int64_t rows = std::ssize(logits) / vocabulary;
    const CudaTensor x(queue(), DType::kF32, {rows, vocabulary}, logits);
    const CudaTensor token(queue(), DType::kI32, {rows});
    cuda::Greedy(queue(), {x, used, token});
    return token.ToInt32();
  }

  struct Top {
    std::vector<int32_t> id;
    Floats value;
    std::vector<int32_t> count;
  };
  Top TopOf(const Floats& logits, int64_t vocabulary, int64_t used, int64_t k) {
    const int64_t rows = std::ssize(logits) / vocabulary;
    const CudaTensor x(queue(), DType::kF32, {rows, vocabulary}, logits);
    const CudaTensor id(queue(), DType::kI32, {rows, k}), value(queue(), DType::kF32, {rows, k});
    const CudaTensor count(queue(), DType::kI32, {rows});
    cuda::TopTokens(queue(), {x, used, id, value, count});
    return {id.ToInt32(), value.ToFloat(), count.ToInt32()};
  }

 private:
  std::unique_ptr<Queue> queue_;
};

// Rows with many equals, masked tokens, zeros of both signs and one sign only.
Floats Logits(uint64_t stream, int64_t rows, int64_t vocabulary) {
  Floats x = RandomFloats(stream, rows * vocabulary);
  for (int64_t i = 0; i < std::ssize(x); ++i) {
    float& v = x[static_cast<size_t>(i)];
    switch (i / vocabulary % 5) {
      case 1:
        v = std::round(2 * v);
        break;
      case 2:
        if (RandomUniform(9, stream, static_cast<uint64_t>(i)) < 0.9) v = kMasked;
        break;
      case 3:
        v = std::round(v) * -0.0f;
        break;
      case 4:
        v = -1000 - std::abs(v);
        break;
      default:
        break;
    }
  }
  return x;
}

TEST_F(SampleCudaTest, GreedyIsTheTokenOfTheCpu) {
  for (const int64_t vocabulary : {1, 7, 1000, 1025, 200'064}) {
    constexpr int64_t kRows = 10;
    const Floats x = Logits(1, kRows, vocabulary);
    const int64_t used = vocabulary > 500 ? vocabulary - 38 : vocabulary;
    const std::vector<int32_t> got = GreedyOf(x, vocabulary, used);
    for (int64_t r = 0; r < kRows; ++r) {
      const auto row = std::span(x).subspan(r * vocabulary, used);
      const bool masked = std::ranges::all_of(row, [](float v) { return v == kMasked; });
      EXPECT_EQ(got[static_cast<size_t>(r)],
                masked ? -1 : Sample(row, {.temperature = 0}, {}, 0, 0))
          << "row " << r << " of " << vocabulary;
    }
  }
}

TEST_F(SampleCudaTest, ADrawFromTheTopTokensIsTheDrawFromAll) {
  for (const int64_t vocabulary : {5, 1000, 4099, 200'064}) {
    constexpr int64_t kRows = 10, kMost = 64;
    const Floats x = Logits(2, kRows, vocabulary);
    const Top top = TopOf(x, vocabulary, vocabulary, kMost);
    for (int64_t r = 0; r < kRows; ++r) {
      SCOPED_TRACE("row " + std::to_string(r) + " of " + std::to_string(vocabulary));
      const auto row = std::span(x).subspan(r * vocabulary, vocabulary);
      const auto unmasked = std::ranges::count_if(row, [](float v) { return v != kMasked; });
      const auto count = static_cast<int64_t>(top.count[static_cast<size_t>(r)]);
      ASSERT_EQ(count, unmasked == 0 ? -1 : std::min<int64_t>(kMost, unmasked));
      if (count < 0) continue;
      const auto ids = std::span(top.id).subspan(r * kMost, count);
      const auto values = std::span(top.value).subspan(r * kMost, count);
      for (int64_t i = 0; i < count; ++i) {
        EXPECT_EQ(values[i], row[ids[i]]);
        EXPECT_LT(i > 0 ? ids[i - 1] : -1, ids[i]);
      }
      for (const int k : {1, 2, 40, 64}) {
        for (const double p : {0.5, 0.95, 1.0}) {
          const SamplingParams params{.temperature = 0.8, .top_k = k, .top_p = p, .seed = 3};
          for (uint64_t position = 0; position < 3; ++position) {
            EXPECT_EQ(ids[Sample(values, params, {}, 1, position)],
                      Sample(row, params, {}, 1, position));
          }
        }
      }
    }
  }
}

TEST_F(SampleCudaTest, BrokenRowsAreMarked) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Floats x = {1, nan, 2, 1, -kMasked, 2, kMasked, kMasked, kMasked, 3, 4, nan};
  EXPECT_EQ(GreedyOf(x, 3, 3), (std::vector<int32_t>{-1, -1, -1, -1}));
  EXPECT_EQ(TopOf(x, 3, 3, 2).count, (std::vector<int32_t>{-1, -1, -1, -1}));
  EXPECT_EQ(GreedyOf(x, 3, 2), (std::vector<int32_t>{-1, -1, -1, 1})) << "beyond the vocabulary";
}

}  // namespace
}  // namespace mm01
