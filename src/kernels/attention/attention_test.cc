// Attention over pages against the formula in double, and the bits that it promises.
#include "kernels/attention/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/attention/attention_cases.h"
#include "kernels/attention/attention_ref.h"
#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;
using Document = AttentionDocument;
using Piece = AttentionPiece;

struct Result {
  Floats out, lse;

  void Append(const Result& r) {
    out.insert(out.end(), r.out.begin(), r.out.end());
    lse.insert(lse.end(), r.lse.begin(), r.lse.end());
  }
  // Rows begin .. end-1 of a result whose rows have `heads` heads.
  Result Rows(int64_t begin, int64_t end, int64_t heads) const {
    const int64_t dim = std::ssize(out) / std::ssize(lse);
    return {{out.begin() + begin * heads * dim, out.begin() + end * heads * dim},
            {lse.begin() + begin * heads, lse.begin() + end * heads}};
  }
};

testing::AssertionResult SameResult(const Result& got, const Result& want) {
  const auto out = SameBits(got.out, want.out);
  return out ? SameBits(got.lse, want.lse) : out;
}

template <typename T>
void Store(Queue& queue, AttentionCache<T>& cache, const std::vector<Piece>& pieces) {
  KvStore(queue, AttentionBatch(cache.tables, pieces).Store(cache.Tensors()));
}

template <typename T>
Result Attend(Queue& queue, const AttentionCache<T>& cache, const std::vector<Piece>& pieces) {
  const AttentionBatch batch(cache.tables, pieces);
  PoisonedVector<float> out(batch.num_rows * batch.heads * batch.dim);
  PoisonedVector<float> lse(batch.num_rows * batch.heads);
  Attention(queue, batch.Attend(cache.Tensors(), out.data(), lse.data()));
  return {{out.begin(), out.end()}, {lse.begin(), lse.end()}};
}

template <typename T>
Result Step(Queue& queue, AttentionCache<T>& cache, const std::vector<Piece>& pieces) {
  Store(queue, cache, pieces);
  return Attend(queue, cache, pieces);
}

// The whole document as sequence `seq`, in chunks.
template <typename T>
Result Read(Queue& queue, AttentionCache<T>& cache, const Document& d, int64_t chunk,
            int64_t seq = 0) {
  Result all;
  for (int64_t at = 0; at < d.rows(); at += chunk) {
    all.Append(Step(queue, cache, {{&d, seq, at, std::min(chunk, d.rows() - at)}}));
  }
  return all;
}

template <typename T = float>
Result Whole(Queue& queue, const Document& d) {
  AttentionCache<T> cache({d.rows()}, d.kv_heads, d.dim);
  return Read(queue, cache, d, d.rows());
}

// Rows begin .. end-1 by the formula. Keys and values stand for themselves after rounding to T.
struct Expected {
  std::vector<double> out, lse;
};
template <typename T>
Expected Reference(Document d, int64_t begin, int64_t end) {
  Floats k, v;
  const auto round = [](float x) { return sizeof(T) == 2 ? ToFloat(ToBF16(x)) : x; };
  for (int64_t t = 0; t < d.rows(); ++t) {
    for (const float x : d.Key(t)) k.push_back(round(x));
    for (const float x : d.Value(t)) v.push_back(round(x));
  }
  Expected all;
  for (int64_t t = begin; t < end; ++t) {
    const auto row = ReferenceAttention(d.Query(t), k, v, d.kv_heads, d.dim, 0, t + 1);
    all.out.insert(all.out.end(), row.out.begin(), row.out.end());
    all.lse.insert(all.lse.end(), row.lse.begin(), row.lse.end());
  }
  return all;
}

void ExpectNear(const Result& got, const Expected& want, double tolerance = 1e-6) {
  EXPECT_LE(RelativeError(got.out, want.out), tolerance);
  ExpectAllNear(got.lse, want.lse, 2e-6);
}

TEST(AttentionTest, GivesWhatWasWorkedByHand) {
  Queue queue(1);
  // Queries of zero: the mean of what was seen, and log of how much that is.
  Document mean(1, 100, 1, 1);
  for (int64_t t = 0; t < 100; ++t) {
    std::ranges::fill(mean.Query(t), 0.0f);
    std::ranges::fill(mean.Value(t), static_cast<float>(t));
  }
  const Result means = Whole(queue, mean);
  for (int64_t t = 0; t < 100; ++t) {
    EXPECT_NEAR(means.out[t * 16], t / 2.0, 1e-5);
    EXPECT_NEAR(means.lse[t], std::log(t + 1.0), 1e-6);
  }
  // Scores 1 / sqrt(16) * 4 * (log 3, 0): shares 3/4 and 1/4.
  Document pair(1, 2, 1, 1);
  std::ranges::fill(pair.qkv, 0.0f);
  pair.Query(1)[3] = 4.0f;
  pair.Key(0)[3] = std::log(3.0f);
  pair.Value(0)[0] = 1.0f;
  pair.Value(1)[0] = 5.0f;
  const Result two = Whole(queue, pair);
  EXPECT_EQ(two.out[0], 1.0f);
  EXPECT_NEAR(two.out[16], 0.75 * 1 + 0.25 * 5, 1e-6);
  EXPECT_NEAR(two.lse[1], std::log(4.0), 1e-6);
}

template <typename T>
void AgreesWithReference() {
  Queue queue(2);
  for (const AttentionCase& c : kAttentionCases) {
    SCOPED_TRACE(c.name);
    const Document d(4, c.rows, c.heads, c.kv_heads, c.dim);
    const Expected want = Reference<T>(d, 0, c.rows);
    OnEverySimdTarget([&] { ExpectNear(Whole<T>(queue, d), want); });
  }
}
TEST(AttentionTest, AgreesWithTheDoubleReference) {
  AgreesWithReference<float>();
}
TEST(AttentionTest, ABF16CacheAgreesWithTheReferenceOnRoundedKeys) {
  AgreesWithReference<bf16>();
}

template <typename T>
void DecodeEqualsPrefill(int64_t heads, int64_t kv_heads) {
  Queue queue(2);
  const Document d(5, 9000, heads, kv_heads);
  AttentionCache<T> cache({d.rows()}, kv_heads);
  std::vector<Result> decoded;
  int64_t stored = 0;
  for (const int64_t context : kAttentionContexts) {
    // What comes after the context is NaN in the cache by now.
    Store(queue, cache, {{&d, 0, stored, context - stored}});
    stored = context;
    decoded.push_back(Attend(queue, cache, {{&d, 0, context - 1, 1}}));
  }
  for (size_t i = 0; i < decoded.size(); ++i) {
    const int64_t context = kAttentionContexts[i];
    const int64_t first = std::max<int64_t>(0, context - 60);
    const int64_t count = std::min<int64_t>(d.rows(), context + 5) - first;
    const Result some = Attend(queue, cache, {{&d, 0, first, count}});
    const int64_t row = context - 1 - first;
    EXPECT_TRUE(SameResult(decoded[i], some.Rows(row, row + 1, heads))) << "context " << context;
  }
  ExpectNear(decoded.back(), Reference<T>(d, 8999, 9000), 2e-6);
}
TEST(AttentionTest, DecodeEqualsPrefillWithGroupsOfOne) {
  DecodeEqualsPrefill<float>(2, 2);
}
TEST(AttentionTest, DecodeEqualsPrefillWithGroupsOfTwo) {
  DecodeEqualsPrefill<float>(2, 1);
}
TEST(AttentionTest, DecodeEqualsPrefillWithGroupsOfEight) {
  DecodeEqualsPrefill<float>(8, 1);
}
TEST(AttentionTest, DecodeEqualsPrefillInBF16) {
  DecodeEqualsPrefill<bf16>(8, 1);
}

TEST(AttentionTest, ChunkingDoesNotChangeABit) {
  Queue queue(1);
  const Document d(6, 331, 4, 2, 32);
  OnEverySimdTarget([&] {
    const Result want = Whole(queue, d), rounded = Whole<bf16>(queue, d);
    for (const int64_t chunk : {1, 7, 64, 256}) {
      AttentionCache<float> cache({d.rows()}, 2, 32);
      AttentionCache<bf16> bf16_cache({d.rows()}, 2, 32);
      EXPECT_TRUE(SameResult(Read(queue, cache, d, chunk), want)) << "chunks of " << chunk;
      EXPECT_TRUE(SameResult(Read(queue, bf16_cache, d, chunk), rounded)) << "chunks of " << chunk;
    }
  });
}

TEST(AttentionTest, ChunkingDoesNotChangeABitWherePartialResultsMeet) {
  Queue queue(2);
  const Document d(7, 4200, 2, 1);
  AttentionCache<float> cache({d.rows()}, 1);
  EXPECT_TRUE(SameResult(Read(queue, cache, d, 777), Whole(queue, d)));
}

TEST(AttentionTest, TheNumberOfThreadsDoesNotChangeABit) {
  Queue one(1), two(2), three(3);
  // Eight kv heads are enough work for one thread, but are cut by splits of the keys for three.
  const Document d(8, 8300, 8, 8);
  AttentionCache<float> cache({d.rows()}, 8);
  Store(one, cache, {{&d, 0, 0, d.rows()}});
  for (const int64_t count : {1, 30, 100}) {
    const std::vector<Piece> rows = {{&d, 0, d.rows() - count, count}};
    const Result want = Attend(one, cache, rows);
    EXPECT_TRUE(SameResult(Attend(two, cache, rows), want)) << count << " rows";
    EXPECT_TRUE(SameResult(Attend(three, cache, rows), want)) << count << " rows";
  }
}

TEST(AttentionTest, ASequenceHasTheSameBitsAloneAndInABatchWhereverItsPagesAre) {
  Queue queue(3);
  const std::vector<int64_t> lengths = {70, 4200, 1, 64, 257};
  std::vector<Document> documents;
  for (const int64_t n : lengths) documents.emplace_back(20 + n, n, 4, 2);
  for (const uint64_t seed : {1, 2}) {
    AttentionCache<float> cache(lengths, 2, 16, seed);
    std::vector<Piece> pieces;
    Result want;
    for (size_t n = 0; n < lengths.size(); ++n) {
      // All of a short document, the last rows of a long one, and a sequence without rows.
      const int64_t first = std::max<int64_t>(0, lengths[n] - 100);
      Store(queue, cache, {{&documents[n], static_cast<int64_t>(n), 0, lengths[n]}});
      pieces.push_back({&documents[n], static_cast<int64_t>(n), first, lengths[n] - first});
      AttentionCache<float> own({lengths[n]}, 2);
      Store(queue, own, {{&documents[n], 0, 0, lengths[n]}});
      want.Append(Attend(queue, own, {{&documents[n], 0, first, lengths[n] - first}}));
    }
    pieces.push_back({&documents[0], 0, 70, 0});
    EXPECT_TRUE(SameResult(Attend(queue, cache, pieces), want)) << "seed " << seed;
  }
}

TEST(AttentionTest, StoringWritesTheRowsAndNothingElse) {
  Queue queue(2);
  const Document a(9, 70, 2, 2), b(10, 30, 2, 2);
  AttentionCache<float> cache({200, 64}, 2);
  Store(queue, cache, {{&a, 0, 0, 70}, {&b, 1, 10, 20}});
  const auto is_written = [](float x) { return !std::isnan(x); };
  EXPECT_EQ(std::ranges::count_if(cache.k, is_written), 90 * 2 * 16);
  EXPECT_EQ(std::ranges::count_if(cache.v, is_written), 90 * 2 * 16);
  // Token 66 is the third of page 1: k [B / 16][K][16], v [B][V]; kv head 1, dim 5.
  Document copy = a;
  const int64_t page = (cache.tables[0][1] * 2 + 1) * 16 * kKvPage;
  EXPECT_EQ(cache.k[page + 5 * 16 + 2], copy.Key(66)[16 + 5]);
  EXPECT_EQ(cache.v[page + 2 * 16 + 5], copy.Value(66)[16 + 5]);
}

template <typename T>
Result WithScale(Queue& queue, const Document& d, float k_scale, float v_scale) {
  AttentionCache<T> cache({d.rows()}, d.kv_heads, d.dim);
  // Every other page, so that scales meet within a tile.
  for (size_t i = 0; i < cache.k_scale.size(); i += 2) {
    cache.k_scale[i] = k_scale;
    cache.v_scale[i] = v_scale;
  }
  return Read(queue, cache, d, d.rows());
}

TEST(AttentionTest, PageScalesThatArePowersOfTwoChangeNoBit) {
  Queue queue(1);
  const Document d(11, 300, 4, 2);
  const Result want = Whole(queue, d), rounded = Whole<bf16>(queue, d);
  for (const float scale : {2.0f, 0.5f}) {
    EXPECT_TRUE(SameResult(WithScale<float>(queue, d, scale, 1 / scale), want));
    EXPECT_TRUE(SameResult(WithScale<float>(queue, d, scale, scale), want));
    EXPECT_TRUE(SameResult(WithScale<bf16>(queue, d, scale, 1 / scale), rounded));
  }
}

TEST(AttentionTest, OtherPageScalesGiveTheSameValues) {
  Queue queue(1);
  const Document d(12, 300, 4, 2);
  const Expected want = Reference<float>(d, 0, 300);
  ExpectNear(WithScale<float>(queue, d, 3.0f, 0.1f), want);
  // bf16 has 8 bits: 2^-9 of a key or value either way.
  EXPECT_LE(RelativeError(WithScale<bf16>(queue, d, 3.0f, 0.1f).out, want.out), 4e-3);
}

TEST(AttentionTest, ScoresFarApartStayFinite) {
  Queue queue(1);
  Document d(13, 200, 2, 1);
  for (int64_t t = 0; t < 200; ++t) {
    for (float& x : d.Query(t)) x *= 100.0f;
    for (float& x : d.Key(t)) x *= 100.0f;
  }
  const Result got = Whole(queue, d);
  const Expected want = Reference<float>(d, 0, 200);
  EXPECT_LE(RelativeError(got.lse, want.lse), 1e-6);
  // A score of 10^5 is rounded to 2^-7, so shares are off by up to a few per cent where two
  // compete.
  EXPECT_LE(RelativeError(got.out, want.out), 1e-2);
}

TEST(AttentionTest, TheLogSumExpIsOptional) {
  Queue queue(1);
  const Document d(14, 80, 4, 2);
  AttentionCache<float> cache({80}, 2);
  const Result want = Read(queue, cache, d, 80);
  const AttentionBatch batch(cache.tables, {{&d, 0, 0, 80}});
  PoisonedVector<float> out(80 * 4 * 16);
  Attention(queue, batch.Attend(cache.Tensors(), out.data(), nullptr));
  EXPECT_TRUE(SameBits(out, want.out));
}

TEST(AttentionTest, WhatDoesNotFitIsABug) {
  Queue queue(1);
  const Document d(15, 10, 4, 2), odd(15, 10, 3, 2), narrow(15, 10, 4, 2, 24);
  AttentionCache<float> cache({10}, 2), wide({10}, 2, 32), narrow_cache({10}, 2, 24);
  Store(queue, cache, {{&d, 0, 0, 10}});
  EXPECT_THROW(Attend(queue, cache, {{&odd, 0, 0, 10}}), Bug) << "3 heads over 2";
  EXPECT_THROW(Attend(queue, narrow_cache, {{&narrow, 0, 0, 10}}), Bug) << "head dim 24";
  EXPECT_THROW(Attend(queue, wide, {{&d, 0, 0, 10}}), Bug);
  EXPECT_THROW(Store(queue, wide, {{&d, 0, 0, 10}}), Bug);
  const AttentionBatch batch(cache.tables, {{&d, 0, 0, 10}});
  Floats out(10 * 4 * 16);
  AttentionArgs args = batch.Attend(cache.Tensors(), out.data(), nullptr);
  args.out.shape[0] = 9;
  EXPECT_THROW(Attention(queue, args), Bug);
  AttentionCache<bf16> other({10}, 2);
  args = batch.Attend(cache.Tensors(), out.data(), nullptr);
  args.kv.v = other.Tensors().v;
  EXPECT_THROW(Attention(queue, args), Bug);
}

TEST(AttentionTest, ScratchIsTakenOnce) {
  Queue queue(2);
  const Document d(16, 4300, 2, 1);
  AttentionCache<float> cache({d.rows()}, 1);
  Store(queue, cache, {{&d, 0, 0, d.rows()}});
  const auto step = [&] {
    Attend(queue, cache, {{&d, 0, 4299, 1}});
    Attend(queue, cache, {{&d, 0, 4000, 300}});
  };
  step();
  const int64_t bytes = queue.scratch_bytes();
  for (int i = 0; i < 3; ++i) step();
  EXPECT_EQ(queue.scratch_bytes(), bytes);
}

}  // namespace
}  // namespace mm01
