// Rows of the embedding on a GPU: copied or decoded, there is nothing to round but to bf16.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <span>
#include <vector>

#include "device/device.h"
#include "kernels/embed/embed.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

TEST(EmbedCudaTest, ATokenIsItsRowAndANegativeIdARowThatWasHandedIn) {
  if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
  Queue queue(1, Device::kCuda);
  constexpr int64_t kVocabulary = 21, kGiven = 2, kWide = 400;
  const std::vector<int32_t> ids = {20, 0, -2, 3, 3, 16, -1, 21, -3};
  for (const int64_t width : {37, 320}) {
    const Floats values = RandomFloats(1, kVocabulary * width);
    const Floats given = RandomBF16s(2, kGiven * kWide);
    const CudaTensor wide(queue, DType::kF32, {kGiven, kWide}, given);
    Tensor embeddings = wide;
    embeddings.shape[1] = width;
    for (const WeightType& type :
         {WeightType{}, WeightType{DType::kBF16}, WeightType{DType::kI8, 32}}) {
      Weight staging = Weight::Staging(type, kVocabulary, width);
      Weight w(type, kVocabulary, width, Device::kCuda);
      for (int64_t i = 0; i < kVocabulary; ++i) {
        staging.SetRow(i, std::span(values).subspan(i * width, width));
      }
      w.CopyRows(queue, 0, staging, kVocabulary);
      for (const DType to : {DType::kF32, DType::kBF16}) {
        SCOPED_TRACE(ToString(type.dtype) + " to " + ToString(to));
        const auto count = std::ssize(ids);
        const CudaTensor out(queue, to, {count, width});
        Embed(queue, {CudaTensor::Int32(queue, {count}, ids), &w, embeddings, out});
        const Floats got = out.ToFloat();
        for (int64_t r = 0; r < count; ++r) {
          const int64_t id = ids[static_cast<size_t>(r)];
          Floats want(static_cast<size_t>(width), std::nanf(""));
          if (0 <= id && id < kVocabulary) {
            staging.GetRow(id, want);
          } else if (id < 0 && -1 - id < kGiven) {
            std::copy_n(given.begin() + (-1 - id) * kWide, width, want.begin());
          }
          for (int64_t i = 0; i < width; ++i) {
            const float w_i = want[static_cast<size_t>(i)];
            const float g_i = got[static_cast<size_t>(r * width + i)];
            if (std::isnan(w_i)) {
              ASSERT_TRUE(std::isnan(g_i)) << "an id out of range";
            } else {
              ASSERT_EQ(g_i, to == DType::kF32 ? w_i : ToFloat(ToBF16(w_i))) << "row " << r;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mm01
