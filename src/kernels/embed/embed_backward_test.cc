#include "kernels/embed/embed_backward.h"

#include <gtest/gtest.h>

#include <vector>

#include "testing/arrays.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

TEST(EmbedBackwardTest, TakesRowsAndAddsTheirGradients) {
  Queue queue(2);
  Floats table = {1, 2, 3, 4, 5, 6}, out(8), d_table = {10, 10, 20, 20, 30, 30};
  const std::vector<int32_t> ids = {2, 0, 2, 2};
  const Tensor rows(out.data(), {4, 2});
  EmbedRows(queue, ids, Tensor(table.data(), {3, 2}), rows);
  EXPECT_TRUE(SameBits(out, Floats{5, 6, 1, 2, 5, 6, 5, 6}));
  Floats d_out = {1, 2, 3, 4, 5, 6, 7, 8};
  EmbedBackward(queue, ids, Tensor(d_out.data(), {4, 2}), Tensor(d_table.data(), {3, 2}));
  EXPECT_TRUE(SameBits(d_table, Floats{13, 14, 20, 20, 43, 46}));
}

TEST(EmbedBackwardTest, RefusesAnIdOutsideTheTable) {
  Queue queue(1);
  Floats table(6), out(2);
  const std::vector<int32_t> ids = {3};
  EXPECT_THROW(EmbedRows(queue, ids, Tensor(table.data(), {3, 2}), Tensor(out.data(), {1, 2})),
               Bug);
}

TEST(EmbedBackwardTest, ThreadsDoNotChangeBits) {
  constexpr int64_t kRows = 500, kWidth = 5, kVocabulary = 7;
  std::vector<int32_t> ids;
  for (uint64_t t = 0; t < kRows; ++t) {
    ids.push_back(static_cast<int32_t>(RandomBits(1, 2, t) % kVocabulary));
  }
  const auto run = [&](int threads) {
    Queue queue(threads);
    Floats d_out = RandomFloats(3, kRows * kWidth), d_table(kVocabulary * kWidth);
    EmbedBackward(queue, ids, Tensor(d_out.data(), {kRows, kWidth}),
                  Tensor(d_table.data(), {kVocabulary, kWidth}));
    return d_table;
  };
  EXPECT_TRUE(SameBits(run(3), run(1)));
}

}  // namespace
}  // namespace mm01
