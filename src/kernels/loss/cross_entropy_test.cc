#include "kernels/loss/cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/loss/cross_entropy_ref.h"
#include "testing/arrays.h"
#include "testing/gradients.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

std::vector<int32_t> Targets(int64_t rows, int64_t used) {
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < rows; ++t) {
    const uint64_t bits = RandomBits(5, 6, static_cast<uint64_t>(t));
    targets.push_back(t % 7 == 3 ? -1 : static_cast<int32_t>(bits % static_cast<uint64_t>(used)));
  }
  return targets;
}

TEST(CrossEntropyTest, ReferenceAgreesWithFiniteDifferences) {
  CrossEntropyReference r{RandomDoubles(1, 5 * 3), RandomDoubles(2, 6 * 3), Targets(5, 4), 3, 4};
  r.Loss();
  const Doubles d_x = r.d_x, d_weight = r.d_weight;
  ExpectGradient([&] { return r.Loss(); }, r.x, d_x);
  ExpectGradient([&] { return r.Loss(); }, r.weight, d_weight);
}

// Four tokens of equal logits: each row costs log 4.
TEST(CrossEntropyTest, ByHand) {
  Queue queue(1);
  Floats x = {0, 0}, weight(6, 1.0f);
  const std::vector<int32_t> targets = {2, -1};
  const CrossEntropy loss = LinearCrossEntropy(queue, {.x = Tensor(x.data(), {2, 1}),
                                                       .weight = Tensor(weight.data(), {6, 1}),
                                                       .targets = targets,
                                                       .vocab_used = 4});
  EXPECT_NEAR(loss.sum, std::log(4.0), 1e-7);
  EXPECT_EQ(loss.counted, 1);
}

struct Results {
  PoisonedVector<float> d_x;
  Floats d_weight;
  CrossEntropy loss, forward;

  Results(int64_t rows, int64_t width, int64_t vocabulary, int64_t used, Queue& queue)
      : d_x(static_cast<size_t>(rows * width)),
        d_weight(static_cast<size_t>(vocabulary * width), 1.0f) {
    Floats x = RandomFloats(1, rows * width), weight = RandomFloats(2, vocabulary * width);
    const std::vector<int32_t> targets = Targets(rows, used);
    LinearCrossEntropyArgs a{.x = Tensor(x.data(), {rows, width}),
                             .weight = Tensor(weight.data(), {vocabulary, width}),
                             .targets = targets,
                             .vocab_used = used,
                             .scale = 0.25};
    forward = LinearCrossEntropy(queue, a);
    a.d_x = Tensor(d_x.data(), {rows, width});
    a.d_weight = Tensor(d_weight.data(), {vocabulary, width});
    loss = LinearCrossEntropy(queue, a);
  }
};

TEST(CrossEntropyTest, FollowsTheReferenceOverSeveralChunks) {
  constexpr int64_t kRows = 2 * kLossRows + 3, kWidth = 20, kVocabulary = 75, kUsed = 70;
  CrossEntropyReference r{ToDoubles(RandomFloats(1, kRows * kWidth)),
                          ToDoubles(RandomFloats(2, kVocabulary * kWidth)), Targets(kRows, kUsed),
                          kWidth, kUsed};
  const double want = r.Loss();
  for (double& d : r.d_x) d *= 0.25;
  for (double& d : r.d_weight) d = 1.0 + 0.25 * d;
  OnEverySimdTarget([&] {
    Queue queue(2);
    const Results got(kRows, kWidth, kVocabulary, kUsed, queue);
    EXPECT_NEAR(got.loss.sum, want, 1e-6 * want);
    EXPECT_EQ(got.forward.sum, got.loss.sum);
    EXPECT_EQ(got.loss.counted, kRows - (kRows + 3) / 7);
    EXPECT_LE(RelativeError(got.d_x, r.d_x), 1e-6);
    EXPECT_LE(RelativeError(got.d_weight, r.d_weight), 1e-6);
  });
}

TEST(CrossEntropyTest, ThreadsDoNotChangeBits) {
  Queue one(1), three(3);
  const Results a(300, 33, 90, 90, one), b(300, 33, 90, 90, three);
  EXPECT_EQ(b.loss.sum, a.loss.sum);
  EXPECT_TRUE(SameBits(b.d_x, a.d_x));
  EXPECT_TRUE(SameBits(b.d_weight, a.d_weight));
}

}  // namespace
}  // namespace mm01
