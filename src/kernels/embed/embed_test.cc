// Rows of the embedding, and rows handed in.
#include "kernels/embed/embed.h"

#include <gtest/gtest.h>

#include <limits>
#include <span>
#include <vector>

#include "testing/arrays.h"
#include "testing/poison.h"

namespace mm01 {
namespace {

constexpr int64_t kVocabulary = 21, kWidth = 37;
using Floats = std::vector<float>;

Weight Table(WeightType type) {
  const Floats values = RandomFloats(1, kVocabulary * kWidth);
  Weight w(type, kVocabulary, kWidth);
  for (int64_t i = 0; i < kVocabulary; ++i) {
    w.SetRow(i, std::span(values).subspan(i * kWidth, kWidth));
  }
  return w;
}

Floats Rows(Queue& queue, const Weight& w, const std::vector<int32_t>& ids,
            const Tensor& embeddings = {}) {
  PoisonedVector<float> out(ids.size() * kWidth);
  Embed(queue, {Tensor(ids.data(), {std::ssize(ids)}), &w, embeddings,
                Tensor(out.data(), {std::ssize(ids), kWidth})});
  return {out.begin(), out.end()};
}

TEST(EmbedTest, ATokenIsItsRowOfTheWeightWhateverTheType) {
  Queue queue(2);
  const std::vector<int32_t> ids = {20, 0, 3, 3, 16, 15};
  for (const WeightType& type :
       {WeightType{}, WeightType{DType::kBF16}, WeightType{DType::kI8, 32}}) {
    const Weight w = Table(type);
    Floats want(ids.size() * kWidth);
    for (size_t i = 0; i < ids.size(); ++i) {
      w.GetRow(ids[i], std::span(want).subspan(i * kWidth, kWidth));
    }
    EXPECT_TRUE(SameBits(Rows(queue, w, ids), want)) << ToString(type.dtype);
  }
}

TEST(EmbedTest, ANegativeIdIsARowThatWasHandedIn) {
  Queue queue(1);
  const Weight w = Table({});
  const Floats wide = RandomFloats(2, 2 * 50);
  Tensor given(wide.data(), {2, kWidth});
  given.stride[0] = 50;
  const Floats got = Rows(queue, w, {-2, 5, -1}, given), five = Rows(queue, w, {5});
  EXPECT_TRUE(SameBits(std::span(got).first(kWidth), std::span(wide).subspan(50, kWidth)));
  EXPECT_TRUE(SameBits(std::span(got).subspan(kWidth, kWidth), five));
  EXPECT_TRUE(SameBits(std::span(got).subspan(2 * kWidth), std::span(wide).first(kWidth)));
}

TEST(EmbedTest, NoRowsAreNoWork) {
  Queue queue(1);
  EXPECT_TRUE(Rows(queue, Table({}), {}).empty());
}

TEST(EmbedTest, IdsOutOfRangeAreABug) {
  Queue queue(2);
  const Weight w = Table({});
  const Floats given(kWidth);
  const Tensor one(given.data(), {1, kWidth});
  EXPECT_THROW(Rows(queue, w, {0, 1, 21}), Bug);
  EXPECT_THROW(Rows(queue, w, {std::numeric_limits<int32_t>::max()}), Bug);
  EXPECT_THROW(Rows(queue, w, {-1}), Bug) << "nothing was handed in";
  EXPECT_THROW(Rows(queue, w, {-2}, one), Bug);
  EXPECT_THROW(Rows(queue, w, {std::numeric_limits<int32_t>::min()}, one), Bug);
}

TEST(EmbedTest, ShapesThatDisagreeAreABug) {
  Queue queue(1);
  const Weight w = Table({});
  const std::vector<int32_t> ids = {1, 2};
  Floats out(2 * 38);
  EXPECT_THROW(Embed(queue, {Tensor(ids.data(), {2}), &w, {}, Tensor(out.data(), {2, 38})}), Bug);
  EXPECT_THROW(Embed(queue, {Tensor(ids.data(), {2}), &w, {}, Tensor(out.data(), {1, 37})}), Bug);
}

}  // namespace
}  // namespace mm01
