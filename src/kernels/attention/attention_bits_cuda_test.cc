// The bits that attention on a GPU promises: the same in every chunking, batch and place.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/attention/attention.h"
#include "testing/cuda_attention.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;
using Document = AttentionDocument;
using Piece = AttentionPiece;
using Result = CudaResult;
using Cache = CudaCache;
using Batch = CudaBatch;

TEST_F(AttentionCudaTest, ChunkingDoesNotChangeABit) {
  for (const DType type : {DType::kBF16, DType::kF32}) {
    for (const int64_t dim : {128, 64}) {
      const Document d = MakeDocument(type, 6, 700, 4, 2, dim);
      const Result want = Whole(type, d);
      for (const int64_t chunk : {3, 37, 64, 128, 200, 331}) {
        Cache cache(queue(), type, {d.rows()}, 2, dim);
        EXPECT_TRUE(SameResult(Read(cache, d, chunk, kAnyRows), want)) << "chunks of " << chunk;
      }
    }
  }
}

TEST_F(AttentionCudaTest, DecodingChunksDoNotChangeABit) {
  const Document d = MakeDocument(DType::kBF16, 7, 1100, 8, 2, 128);
  Cache cache(queue(), DType::kBF16, {d.rows()}, 2, 128);
  Store(cache, {{&d, 0, 0, d.rows()}});
  const auto read = [&](int64_t chunk) {
    Result all;
    for (int64_t at = 1000; at < 1100; at += chunk) {
      // Keys of later rows are there already and must not be seen.
      all.Append(Attend(cache, {{&d, 0, at, chunk, 0, 1100}}));
    }
    return all;
  };
  const Result want = read(1);
  EXPECT_TRUE(SameResult(read(2), want));
  EXPECT_TRUE(SameResult(read(4), want));
}

TEST_F(AttentionCudaTest, ASequenceHasTheSameBitsAloneAndInABatchWhereverItsPagesAre) {
  const std::vector<int64_t> lengths = {70, 4200, 1, 64, 257, 513};
  for (const int64_t most : {int64_t{100}, kDecodeRows, int64_t{1}}) {
    std::vector<Document> documents;
    for (const int64_t n : lengths) {
      documents.push_back(MakeDocument(DType::kBF16, 20 + n, n, 16, 2, 128));
    }
    const int64_t path = most > kDecodeRows ? kAnyRows : 0;
    for (const uint64_t seed : {1, 2}) {
      Cache cache(queue(), DType::kBF16, lengths, 2, 128, seed);
      std::vector<Piece> pieces;
      Result want;
      for (size_t n = 0; n < lengths.size(); ++n) {
        // All of a short document, the last rows of a long one, and sequences without rows.
        const int64_t first = std::max<int64_t>(0, lengths[n] - most);
        Store(cache, {{&documents[n], static_cast<int64_t>(n), 0, lengths[n]}});
        pieces.push_back({&documents[n], static_cast<int64_t>(n), first, lengths[n] - first});
        if (n % 2 == 0) pieces.push_back({&documents[0], 0, 70, 0});
        Cache own(queue(), DType::kBF16, {lengths[n]}, 2, 128);
        Store(own, {{&documents[n], 0, 0, lengths[n]}});
        want.Append(Attend(own, {{&documents[n], 0, first, lengths[n] - first}}, path));
      }
      EXPECT_TRUE(SameResult(Attend(cache, pieces, path), want)) << most << ", seed " << seed;
    }
  }
}

TEST_F(AttentionCudaTest, ManySequencesDecodeAsEachAlone) {
  // More than a block has threads, and one far longer than the others.
  std::vector<int64_t> lengths;
  for (int64_t n = 0; n < 400; ++n) lengths.push_back(n == 333 ? 9000 : 1 + n * 37 % 300);
  const Document d = MakeDocument(DType::kBF16, 8, 9000, 2, 1, 128);
  Cache cache(queue(), DType::kBF16, lengths, 1, 128, 5),
      own(queue(), DType::kBF16, {9000}, 1, 128);
  Store(own, {{&d, 0, 0, 9000}});
  std::vector<Piece> all, last;
  Result want;
  for (int64_t n = 0; n < 400; ++n) {
    all.push_back({&d, n, 0, lengths[n]});
    last.push_back({&d, n, lengths[n] - 1, 1});
    want.Append(Attend(own, {{&d, 0, lengths[n] - 1, 1}}));
  }
  Store(cache, all);
  EXPECT_TRUE(SameResult(Attend(cache, last), want));
}

// Rows and pages beyond 2^31 elements; whatever is around them is NaN.
TEST_F(AttentionCudaTest, OffsetsPassTwoToThe31st) {
  constexpr int64_t kHeads = 64, kKvHeads = 8, kDim = 128, kRows = 128, kSeqs = 2050;
  constexpr int64_t kPages = (int64_t{1} << 31) / (kKvHeads * kKvPage * kDim) + 4;
  if (FindCuda()->free_bytes < int64_t{24} << 30) GTEST_SKIP() << "not enough memory";
  const Document d = MakeDocument(DType::kBF16, 17, kRows, kHeads, kKvHeads, kDim);
  Cache small(queue(), DType::kBF16, {kRows}, kKvHeads, kDim);
  const Result want = Read(small, d, kRows), want_last = Attend(small, {{&d, 0, kRows - 1, 1}});

  const CudaTensor k(queue(), DType::kBF16, {kPages, kKvHeads, kKvPage * kDim});
  const CudaTensor v(queue(), DType::kBF16, {kPages, kKvHeads, kKvPage * kDim});
  const PagedKv kv = {.k = k, .v = v};
  const std::vector<std::vector<int32_t>> table = {{kPages - 1, kPages - 2}};
  const Batch own(queue(), DType::kBF16, AttentionBatch(table, {{&d, 0, 0, kRows}}));
  KvStore(queue(), own.Store(kv));

  // All sequences but the last read pages 0 and 1.
  const CudaTensor q(queue(), DType::kBF16, {kSeqs * kRows, kHeads, kDim});
  const CudaTensor out(queue(), DType::kBF16, {kSeqs * kRows, kHeads, kDim});
  const CudaTensor lse(queue(), DType::kF32, {kSeqs * kRows, kHeads});
  std::vector<int64_t> cu, zeros(kSeqs, 0), lengths(kSeqs, kRows);
  for (int64_t n = 0; n <= kSeqs; ++n) cu.push_back(n * kRows);
  std::vector<int32_t> tables;
  for (int64_t n = 0; n < kSeqs; ++n) {
    const bool is_last = n == kSeqs - 1;
    tables.push_back(is_last ? kPages - 1 : 0);
    tables.push_back(is_last ? kPages - 2 : 1);
  }
  const int64_t first = (kSeqs - 1) * kRows * kHeads * kDim, count = kRows * kHeads * kDim;
  const CudaTensor rows(queue(), DType::kBF16, {kRows, kHeads, kDim}, [&] {
    Document copy = d;
    Floats all;
    for (int64_t t = 0; t < kRows; ++t) {
      all.insert(all.end(), copy.Query(t).begin(), copy.Query(t).end());
    }
    return all;
  }());
  queue().CopyOnDevice(static_cast<bf16*>(q.tensor().data) + first, rows.tensor().data, count * 2);
  const CudaTensor cu_tensor = CudaTensor::Int64(queue(), cu);
  const CudaTensor zero_tensor = CudaTensor::Int64(queue(), zeros);
  const CudaTensor length_tensor = CudaTensor::Int64(queue(), lengths);
  const CudaTensor table_tensor = CudaTensor::Int32(queue(), {kSeqs, 2}, tables);
  Attention(queue(), {.q = q,
                      .cu_seqlens = cu_tensor,
                      .position = zero_tensor,
                      .kv_start = zero_tensor,
                      .kv_length = length_tensor,
                      .block_table = table_tensor,
                      .max_rows = kRows,
                      .kv = kv,
                      .out = out,
                      .lse = lse});
  std::vector<bf16> got(static_cast<size_t>(count));
  queue().CopyToHost(got.data(), static_cast<const bf16*>(out.tensor().data) + first, count * 2);
  Floats floats;
  for (const bf16 x : got) floats.push_back(ToFloat(x));
  EXPECT_TRUE(SameBits(floats, want.out));

  const Batch last(queue(), DType::kBF16, AttentionBatch(table, {{&d, 0, kRows - 1, 1}}));
  const CudaTensor last_out(queue(), DType::kBF16, {1, kHeads, kDim});
  Attention(queue(), last.Attend(kv, last_out, Tensor()));
  EXPECT_TRUE(SameBits(last_out.ToFloat(), want_last.out));
}

TEST_F(AttentionCudaTest, ScratchIsTakenOnce) {
  const Document d = MakeDocument(DType::kBF16, 18, 2000, 8, 1, 128);
  Cache cache(queue(), DType::kBF16, {2000}, 1, 128);
  Store(cache, {{&d, 0, 0, 2000}});
  const auto step = [&] {
    Attend(cache, {{&d, 0, 1999, 1}});
    Attend(cache, {{&d, 0, 1000, 1000}});
  };
  step();
  const int64_t bytes = queue().scratch_bytes();
  for (int i = 0; i < 3; ++i) step();
  EXPECT_EQ(queue().scratch_bytes(), bytes);
}

}  // namespace
}  // namespace mm01
