// Ranks with a part of the tokens each against one rank with all of them.
#include "parallel/lasp_plus.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "comm/thread_group.h"
#include "testing/arrays.h"

namespace mm01 {
namespace {

constexpr int64_t kHeads = 3, kDim = 16, kWidth = kHeads * kDim;

// Rows begin .. begin + rows - 1 of one text, from an empty slot.
class Part {
 public:
  Part(int64_t begin, int64_t rows, int64_t held = 0) : rows_(rows), cu_{0, rows}, held_{held} {
    for (const uint64_t stream : {1, 2, 3}) {
      const std::vector<float> all = RandomFloats(stream, 400 * kWidth);
      qkv_.emplace_back(all.begin() + begin * kWidth, all.begin() + (begin + rows) * kWidth);
    }
  }

  LightningArgs args() {
    const auto rows = [&](std::vector<float>& v) {
      return Tensor(v.data(), {rows_, kHeads, kDim});
    };
    return {.q = rows(qkv_[0]),
            .k = rows(qkv_[1]),
            .v = rows(qkv_[2]),
            .slope = Tensor(slope_.data(), {kHeads}),
            .cu_seqlens = Tensor(cu_.data(), {2}),
            .position = Tensor(held_.data(), {1}),
            .slot = Tensor(slot_.data(), {1}),
            .state = {.s = Tensor(s_.data(), {1, kHeads, kDim, kDim}),
                      .k_rows = Tensor(k_rows_.data(), {1, kHeads, kLightningBlock * kDim}),
                      .v_rows = Tensor(v_rows_.data(), {1, kHeads, kLightningBlock * kDim})},
            .out = rows(out_)};
  }
  const std::vector<float>& out() const { return out_; }

 private:
  int64_t rows_;
  std::vector<int64_t> cu_, held_;
  std::vector<int32_t> slot_{0};
  std::vector<float> slope_{0.5f, 0.05f, 0.004f};
  std::vector<std::vector<float>> qkv_;
  // Not a number until written: what a slot held before must not show.
  std::vector<float> s_ = std::vector<float>(kHeads * kDim * kDim, kNaN);
  std::vector<float> k_rows_ = std::vector<float>(kHeads * kLightningBlock * kDim, kNaN);
  std::vector<float> v_rows_ = k_rows_;
  std::vector<float> out_ = std::vector<float>(static_cast<size_t>(rows_ * kWidth), kNaN);
};

void ExpectEqualsOneRank(const std::vector<int64_t>& lengths) {
  const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  Queue queue(1);
  Part whole(0, total);
  Lightning(queue, whole.args());

  std::vector<float> got(whole.out().size(), kNaN);
  ThreadRanks(static_cast<int>(lengths.size())).Run([&](int rank, Group& group) {
    Queue mine(1);
    const int64_t begin = std::accumulate(lengths.begin(), lengths.begin() + rank, int64_t{0});
    Part part(begin, lengths[static_cast<size_t>(rank)]);
    Lightning(mine, part.args());
    AddEarlierRanks(mine, group, part.args());
    std::ranges::copy(part.out(), got.begin() + begin * kWidth);
  });
  EXPECT_LE(RelativeError(got, whole.out()), 1e-6);
}

TEST(LaspPlusTest, PartsOfOneSize) {
  ExpectEqualsOneRank({64, 64});
}
TEST(LaspPlusTest, PartsThatEndInsideABlock) {
  ExpectEqualsOneRank({33, 33, 32, 32});
}
TEST(LaspPlusTest, PartsOfVeryDifferentSizes) {
  ExpectEqualsOneRank({1, 130, 7, 64});
}
TEST(LaspPlusTest, ARankWithoutTokens) {
  ExpectEqualsOneRank({65, 0, 3});
}
TEST(LaspPlusTest, TheFirstRankWithoutTokens) {
  ExpectEqualsOneRank({0, 40});
}

TEST(LaspPlusTest, TheFirstRankKeepsItsBits) {
  Queue queue(1);
  Part alone(0, 50);
  Lightning(queue, alone.args());
  ThreadRanks(2).Run([&](int rank, Group& group) {
    Queue mine(1);
    Part part(50 * rank, 50);
    Lightning(mine, part.args());
    AddEarlierRanks(mine, group, part.args());
    if (rank == 0) {
      EXPECT_TRUE(SameBits(part.out(), alone.out()));
    }
  });
}

TEST(LaspPlusTest, AGroupOfOneChangesNothing) {
  Queue queue(1);
  Part part(0, 50);
  Lightning(queue, part.args());
  const std::vector<float> before = part.out();
  SingleGroup alone;
  AddEarlierRanks(queue, alone, part.args());
  EXPECT_TRUE(SameBits(part.out(), before));
}

TEST(LaspPlusTest, ASequenceThatWentOnIsABug) {
  Queue queue(1);
  Part part(0, 10, 5);
  SingleGroup alone;
  EXPECT_THROW(AddEarlierRanks(queue, alone, part.args()), Bug);
}

}  // namespace
}  // namespace mm01
