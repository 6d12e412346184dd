// Ranks with a part of the tokens each against one rank with all of them.
#include "parallel/ring_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "comm/thread_group.h"
#include "testing/arrays.h"

namespace mm01 {
namespace {

constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 16;

// Rows begin .. begin + rows - 1 of one text, whose keys start at position `begin` of the cache.
class Part {
 public:
  Part(int64_t begin, int64_t rows, DType type)
      : rows_(rows),
        type_(type),
        num_pages_((rows + kKvPage - 1) / kKvPage),
        cu_{0, rows},
        begin_{begin},
        length_{rows} {
    q_ = Slice(1, begin, kHeads * kDim);
    k_ = Slice(2, begin, kKvHeads * kDim);
    v_ = Slice(3, begin, kKvHeads * kDim);
    // Pages in falling order, after one that nobody owns.
    for (int64_t i = 0; i < num_pages_; ++i) table_.push_back(static_cast<int32_t>(num_pages_ - i));
    if (table_.empty()) table_.push_back(-1);
    const auto size = static_cast<size_t>((num_pages_ + 1) * kKvHeads * kKvPage * kDim);
    pool_f32_.assign(2 * size, kNaN);
    pool_bf16_.assign(2 * size, ToBF16(kNaN));
    scale_.assign(static_cast<size_t>((num_pages_ + 1) * kKvHeads), 1.0f);
    out_.assign(static_cast<size_t>(rows * kHeads * kDim), kNaN);
  }

  void Store(Queue& queue) {
    KvStore(queue, {.k = Tensor(k_.data(), {rows_, kKvHeads, kDim}),
                    .v = Tensor(v_.data(), {rows_, kKvHeads, kDim}),
                    .cu_seqlens = Tensor(cu_.data(), {2}),
                    .position = Tensor(begin_.data(), {1}),
                    .kv_start = Tensor(begin_.data(), {1}),
                    .block_table = Table(),
                    .kv = Kv()});
  }

  AttentionArgs args() {
    return {.q = Tensor(q_.data(), {rows_, kHeads, kDim}),
            .cu_seqlens = Tensor(cu_.data(), {2}),
            .position = Tensor(begin_.data(), {1}),
            .kv_start = Tensor(begin_.data(), {1}),
            .kv_length = Tensor(length_.data(), {1}),
            .block_table = Table(),
            .kv = Kv(),
            .out = Tensor(out_.data(), {rows_, kHeads, kDim})};
  }
  const std::vector<float>& out() const { return out_; }

 private:
  std::vector<float> Slice(uint64_t stream, int64_t begin, int64_t width) const {
    const std::vector<float> all = RandomFloats(stream, 400 * width);
    return {all.begin() + begin * width, all.begin() + (begin + rows_) * width};
  }
  Tensor Table() { return Tensor(table_.data(), {1, static_cast<int64_t>(table_.size())}); }
  PagedKv Kv() {
    const int64_t pages = num_pages_ + 1, row = kKvPage * kDim, size = pages * kKvHeads * row;
    const auto pool = [&](int64_t at) {
      return type_ == DType::kF32 ? Tensor(pool_f32_.data() + at, {pages, kKvHeads, row})
                                  : Tensor(pool_bf16_.data() + at, {pages, kKvHeads, row});
    };
    const Tensor scale(scale_.data(), {pages, kKvHeads});
    return {.k = pool(0), .v = pool(size), .k_scale = scale, .v_scale = scale};
  }

  int64_t rows_;
  DType type_;
  int64_t num_pages_;
  std::vector<int64_t> cu_, begin_, length_;
  std::vector<int32_t> table_;
  std::vector<float> q_, k_, v_, pool_f32_, scale_, out_;
  std::vector<bf16> pool_bf16_;
};

void ExpectEqualsOneRank(const std::vector<int64_t>& lengths, DType type = DType::kF32) {
  const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  Queue queue(1);
  Part whole(0, total, type);
  whole.Store(queue);
  Attention(queue, whole.args());

  std::vector<float> got(whole.out().size(), kNaN);
  ThreadRanks(static_cast<int>(lengths.size())).Run([&](int rank, Group& group) {
    Queue mine(1);
    const int64_t begin = std::accumulate(lengths.begin(), lengths.begin() + rank, int64_t{0});
    Part part(begin, lengths[static_cast<size_t>(rank)], type);
    part.Store(mine);
    RingAttention(mine, group, part.args());
    std::ranges::copy(part.out(), got.begin() + begin * kHeads * kDim);
  });
  EXPECT_LE(RelativeError(got, whole.out()), 1e-6);
}

TEST(RingAttentionTest, PartsOfOneSize) {
  ExpectEqualsOneRank({64, 64});
}
TEST(RingAttentionTest, PartsThatEndInsideAPage) {
  ExpectEqualsOneRank({33, 33, 32, 32});
}
TEST(RingAttentionTest, PartsOfVeryDifferentSizes) {
  ExpectEqualsOneRank({1, 130, 7, 64});
}
TEST(RingAttentionTest, ARankWithoutTokens) {
  ExpectEqualsOneRank({65, 0, 3});
}
TEST(RingAttentionTest, TheFirstRankWithoutTokens) {
  ExpectEqualsOneRank({0, 40});
}
TEST(RingAttentionTest, KeysInBf16) {
  ExpectEqualsOneRank({70, 31, 65}, DType::kBF16);
}

TEST(RingAttentionTest, AGroupOfOneIsAttentionToTheBit) {
  Queue queue(1);
  Part plain(0, 100, DType::kF32), ring(0, 100, DType::kF32);
  plain.Store(queue);
  ring.Store(queue);
  Attention(queue, plain.args());
  SingleGroup alone;
  RingAttention(queue, alone, ring.args());
  EXPECT_TRUE(SameBits(ring.out(), plain.out()));
}

}  // namespace
}  // namespace mm01
