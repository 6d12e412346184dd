// Tokens drawn from rows on a GPU are those of Sample.
#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <vector>

#include "device/device.h"
#include "kernels/sample/sample_rows.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"

namespace mm01 {
namespace {

class SampleRowsCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  std::unique_ptr<Queue> queue_;
};

TEST_F(SampleRowsCudaTest, AreThoseOfTheCpu) {
  const std::vector<SamplingParams> kinds = {{.temperature = 0},
                                             {.temperature = 0.7, .top_k = 40, .top_p = 0.9},
                                             {.temperature = 1},
                                             {.temperature = 0.3, .top_p = 0.8},
                                             {.temperature = 0.2, .min_p = 0.3}};
  for (const int64_t vocabulary : {1, 63, 64, 65, 1023, 1025, 200'064}) {
    const auto rows = std::ssize(kinds);
    const std::vector<float> x = RandomFloats(7, rows * vocabulary);
    const CudaTensor logits(*queue_, DType::kF32, {rows, vocabulary}, x);
    int given = 0;
    for (uint64_t position = 0; position < 10; ++position) {
      std::vector<RowDraw> draws;
      for (const SamplingParams& params : kinds) {
        draws.push_back({.params = params, .position = position});
      }
      std::vector<int32_t> token(draws.size());
      SampleRows(*queue_, logits, draws, token);
      for (size_t r = 0; r < draws.size(); ++r) {
        if (token[r] < 0) continue;
        ++given;
        const auto row = std::span(x).subspan(r * static_cast<size_t>(vocabulary),
                                              static_cast<size_t>(vocabulary));
        EXPECT_EQ(token[r], Sample(row, kinds[r], {}, 0, position)) << r << " of " << vocabulary;
      }
    }
    EXPECT_GE(given, 30) << "greedy, top-k and plain draws always are";
  }
}

}  // namespace
}  // namespace mm01
