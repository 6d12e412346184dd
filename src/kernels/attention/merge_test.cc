// Ranks that hold parts of the keys: each attends to its own, and MergeAttention joins them.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cases.h"
#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/poison.h"

namespace mm01 {
namespace {

constexpr int64_t kRows = 400, kHeads = 4, kKvHeads = 2, kDim = 16;
constexpr float kNothing = -std::numeric_limits<float>::infinity();
using Floats = std::vector<float>;

struct Result {
  Floats out, lse;

  Tensor Out() const { return Tensor(out.data(), {kRows, kHeads, kDim}); }
  Tensor Lse() const { return Tensor(lse.data(), {kRows, kHeads}); }
};

// All rows of the document over keys begin .. end-1.
Result Over(Queue& queue, const AttentionDocument& d, int64_t begin, int64_t end) {
  AttentionCache<float> cache({end - begin}, kKvHeads);
  KvStore(
      queue,
      AttentionBatch(cache.tables, {{&d, 0, begin, end - begin, begin}}).Store(cache.Tensors()));
  const AttentionBatch batch(cache.tables, {{&d, 0, 0, kRows, begin, end - begin}});
  PoisonedVector<float> out(kRows * kHeads * kDim), lse(kRows * kHeads);
  Attention(queue, batch.Attend(cache.Tensors(), out.data(), lse.data()));
  return {{out.begin(), out.end()}, {lse.begin(), lse.end()}};
}

void Merge(Queue& queue, const Result& into, const Result& other) {
  MergeAttention(queue, into.Out(), into.Lse(), other.Out(), other.Lse());
}

TEST(MergeAttentionTest, PartsOfTheKeysMergedEqualTheWhole) {
  Queue queue(2);
  const AttentionDocument d(1, kRows, kHeads, kKvHeads);
  const Result whole = Over(queue, d, 0, kRows);
  for (const auto& borders :
       {std::vector<int64_t>{0, 100, kRows}, {0, 64, 256, kRows}, {0, 1, 2, 399, kRows}}) {
    Result all = Over(queue, d, borders[0], borders[1]);
    for (size_t i = 1; i + 1 < borders.size(); ++i) {
      Merge(queue, all, Over(queue, d, borders[i], borders[i + 1]));
    }
    EXPECT_LE(RelativeError(all.out, whole.out), 1e-6) << borders.size() - 1 << " parts";
    ExpectAllNear(all.lse, whole.lse, 1e-6);
  }
}

TEST(MergeAttentionTest, TheOrderOfThePartsMattersOnlyInRounding) {
  Queue queue(1);
  const AttentionDocument d(2, kRows, kHeads, kKvHeads);
  const Result whole = Over(queue, d, 0, kRows);
  Result all = Over(queue, d, 300, kRows);
  Merge(queue, all, Over(queue, d, 0, 100));
  Merge(queue, all, Over(queue, d, 100, 300));
  EXPECT_LE(RelativeError(all.out, whole.out), 1e-6);
  ExpectAllNear(all.lse, whole.lse, 1e-6);
}

TEST(MergeAttentionTest, RowsBeforeTheFirstKeySeeNothing) {
  Queue queue(1);
  const AttentionDocument d(3, kRows, kHeads, kKvHeads);
  for (const int64_t start : {1, 65, 399}) {
    const Result part = Over(queue, d, start, kRows);
    for (int64_t i = 0; i < kRows * kHeads; ++i) {
      EXPECT_EQ(part.lse[i] == kNothing, i / kHeads < start);
      if (i / kHeads >= start) continue;
      for (int64_t j = 0; j < kDim; ++j) EXPECT_EQ(part.out[i * kDim + j], 0.0f);
    }
  }
}

TEST(MergeAttentionTest, NothingMergedChangesNoBit) {
  Queue queue(1);
  const AttentionDocument d(4, kRows, kHeads, kKvHeads);
  const Result whole = Over(queue, d, 0, kRows);
  const Result nothing{Floats(kRows * kHeads * kDim, 0.0f), Floats(kRows * kHeads, kNothing)};
  Result all = whole, empty = nothing;
  Merge(queue, all, nothing);
  EXPECT_TRUE(SameBits(all.out, whole.out));
  EXPECT_TRUE(SameBits(all.lse, whole.lse));
  Merge(queue, empty, whole);
  EXPECT_TRUE(SameBits(empty.out, whole.out));
  EXPECT_TRUE(SameBits(empty.lse, whole.lse));
  Result still = nothing;
  Merge(queue, still, nothing);
  EXPECT_TRUE(SameBits(still.out, nothing.out));
  EXPECT_TRUE(SameBits(still.lse, nothing.lse));
}

TEST(MergeAttentionTest, TwoResultsAreWeighedByTheirSums) {
  // Sums of 3 and 1: 3/4 of the first, 1/4 of the second, log 4.
  Queue queue(1);
  Floats a = {1, 2}, b = {5, -2}, a_lse = {std::log(3.0f)};
  const Floats b_lse = {0.0f};
  MergeAttention(queue, Tensor(a.data(), {1, 1, 2}), Tensor(a_lse.data(), {1, 1}),
                 Tensor(b.data(), {1, 1, 2}), Tensor(b_lse.data(), {1, 1}));
  EXPECT_NEAR(a[0], 2.0, 1e-6);
  EXPECT_NEAR(a[1], 1.0, 1e-6);
  EXPECT_NEAR(a_lse[0], std::log(4.0), 1e-6);
}

}  // namespace
}  // namespace mm01
