// Attention on a GPU against the formula in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/rope/rope_ref.h"
#include "testing/cuda_attention.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;
using Document = AttentionDocument;
using Piece = AttentionPiece;
using Result = CudaResult;
using Cache = CudaCache;
using Batch = CudaBatch;

TEST_F(AttentionCudaTest, GivesWhatWasWorkedByHand) {
  // Queries of zero: the mean of what was seen, and log of how much that is.
  for (const int64_t dim : {128, 64, 16}) {
    Document mean(1, 200, 1, 1, dim);
    for (int64_t t = 0; t < 200; ++t) {
      std::ranges::fill(mean.Query(t), 0.0f);
      std::ranges::fill(mean.Value(t), static_cast<float>(t % 2));
    }
    const Result means = Whole(DType::kBF16, mean);
    for (int64_t t = 0; t < 200; ++t) {
      EXPECT_NEAR(means.out[t * dim], static_cast<double>((t + 1) / 2) / (t + 1.0), 2e-3);
      EXPECT_NEAR(means.lse[t], std::log(t + 1.0), 1e-6);
    }
  }
}

TEST_F(AttentionCudaTest, AgreesWithTheDoubleReference) {
  for (const AttentionCase& c : kAttentionCases) {
    ExpectAgrees(DType::kF32, c);
    ExpectAgrees(DType::kBF16, c);
  }
}

TEST_F(AttentionCudaTest, TensorCoresAgreeWithTheDoubleReference) {
  for (const int64_t dim : {128, 64}) {
    for (const int64_t rows : {5, 63, 64, 65, 127, 128, 129, 257, 331, 1000}) {
      ExpectAgrees(DType::kBF16, {"groups of eight", rows, 8, 1, dim});
    }
    ExpectAgrees(DType::kBF16, {"groups of one", 300, 3, 3, dim});
    ExpectAgrees(DType::kBF16, {"groups of two", 300, 4, 2, dim});
    ExpectAgrees(DType::kBF16, {"a group that no decoding block holds", 130, 24, 1, dim});
  }
  ExpectAgrees(DType::kBF16, {"the released heads", 200, 64, 8, 128});
}

TEST_F(AttentionCudaTest, DecodingAgreesWithTheDoubleReference) {
  const std::vector<int64_t> contexts = {1,     2,     15,    16,    17,    63,   64,
                                         65,    511,   512,   513,   1024,  4097, 16383,
                                         16384, 16385, 16897, 17408, 17409, 20000};
  struct Shape {
    int64_t heads, kv_heads, dim, rows;
  };
  for (const Shape& s : {Shape{8, 1, 128, 20000},
                         {8, 8, 128, 1100},
                         {16, 8, 64, 5000},
                         {16, 1, 64, 20000},
                         {24, 8, 128, 1100}}) {
    SCOPED_TRACE(s.heads);
    Document d = MakeDocument(DType::kBF16, 5, s.rows, s.heads, s.kv_heads, s.dim);
    Cache cache(queue(), DType::kBF16, {d.rows()}, s.kv_heads, s.dim);
    int64_t stored = 0;
    for (const int64_t context : contexts) {
      if (context > s.rows) break;
      SCOPED_TRACE(context);
      // What comes after the context is NaN in the cache by now.
      Store(cache, {{&d, 0, stored, context - stored}});
      stored = context;
      const Result one = Attend(cache, {{&d, 0, context - 1, 1}});
      ExpectRows(DType::kBF16, d, one, context - 1, {context - 1}, kDecodeTolerance);
      for (int64_t count = 2; count <= std::min<int64_t>(context, kDecodeRows); ++count) {
        const Result some = Attend(cache, {{&d, 0, context - count, count}});
        EXPECT_TRUE(SameResult(some.Rows(count - 1, count, s.heads), one)) << count << " rows";
      }
    }
    // The path of long inputs on the same last rows.
    const Result last = Attend(cache, {{&d, 0, stored - 7, 7}});
    ExpectRows(DType::kBF16, d, last, stored - 7, {stored - 7, stored - 1});
  }
}

TEST_F(AttentionCudaTest, PartsOfTheKeysMergedEqualTheWhole) {
  struct Shape {
    DType type;
    int64_t dim;
    double tolerance;
  };
  for (const Shape& s :
       {Shape{DType::kF32, 16, 1e-6}, {DType::kBF16, 128, 5e-3}, {DType::kBF16, 64, 5e-3}}) {
    const Document d = MakeDocument(s.type, 9, 400, 4, 2, s.dim);
    const auto over = [&](int64_t begin, int64_t end, int64_t first) {
      Cache cache(queue(), s.type, {end - begin}, 2, s.dim);
      Store(cache, {{&d, 0, begin, end - begin, begin}});
      return Attend(cache, {{&d, 0, first, 400 - first, begin, end - begin}});
    };
    for (const int64_t first : {0, 397}) {
      const Result whole = over(0, 400, first);
      const int64_t rows = 400 - first;
      for (const auto& borders :
           {std::vector<int64_t>{0, 100, 400}, {0, 64, 256, 400}, {0, 1, 2, 399, 400}}) {
        const Result start = over(borders[0], borders[1], first);
        const CudaTensor out(queue(), s.type, {rows, 4, s.dim}, start.out);
        const CudaTensor lse(queue(), DType::kF32, {rows, 4}, start.lse);
        for (size_t i = 1; i + 1 < borders.size(); ++i) {
          const Result more = over(borders[i], borders[i + 1], first);
          for (int64_t r = 0; r < rows * 4; ++r) {  // rows before the first key see nothing
            EXPECT_EQ(more.lse[r] == kNothing, first + r / 4 < borders[i]);
            for (int64_t e = 0; more.lse[r] == kNothing && e < s.dim; ++e) {
              EXPECT_EQ(more.out[r * s.dim + e], 0.0f);
            }
          }
          const CudaTensor other(queue(), s.type, {rows, 4, s.dim}, more.out);
          const CudaTensor other_lse(queue(), DType::kF32, {rows, 4}, more.lse);
          MergeAttention(queue(), out, lse, other, other_lse);
          queue().Wait();
        }
        EXPECT_LE(RelativeError(out.ToFloat(), whole.out), s.tolerance);
        ExpectAllNear(lse.ToFloat(), whole.lse, 1e-5);
      }
    }
  }
}

TEST_F(AttentionCudaTest, StoringWritesTheRowsAndNothingElse) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t dim : {128, 16}) {
      const Document a = MakeDocument(type, 10, 70, 2, 2, dim);
      const Document b = MakeDocument(type, 11, 30, 2, 2, dim);
      Cache cache(queue(), type, {200, 64}, 2, dim);
      Store(cache, {{&a, 0, 0, 70}, {&a, 0, 70, 0}, {&b, 1, 10, 20}});
      const Floats k = cache.k.ToFloat(), v = cache.v.ToFloat();
      const auto is_written = [](float x) { return !std::isnan(x); };
      EXPECT_EQ(std::ranges::count_if(k, is_written), 90 * 2 * dim);
      EXPECT_EQ(std::ranges::count_if(v, is_written), 90 * 2 * dim);
      Document copy = a;
      for (int64_t t = 0; t < 70; ++t) {
        for (int64_t i = 0; i < 2 * dim; ++i) {  // [P, G, B, K]
          const int64_t head = cache.tables[0][t / 64] * 2 + i / dim;
          const int64_t at = (head * kKvPage + t % 64) * dim + i % dim;
          ASSERT_EQ(k[at], copy.Key(t)[i]);
          ASSERT_EQ(v[at], copy.Value(t)[i]);
        }
      }
    }
  }
}

TEST_F(AttentionCudaTest, StoringTurnsKeysAndQueries) {
  struct Shape {
    DType type;
    int64_t dim, half;
  };
  for (const Shape& s : {Shape{DType::kBF16, 128, 32},
                         {DType::kF32, 128, 32},
                         {DType::kF32, 48, 3},
                         {DType::kBF16, 16, 8}}) {
    SCOPED_TRACE(s.dim);
    Document d = MakeDocument(s.type, 12, 100, 6, 2, s.dim);
    Floats cos, sin;
    for (int64_t t = 0; t < 100; ++t) {
      for (int64_t j = 0; j < s.half; ++j) {
        const auto angle = static_cast<double>(ReferenceAngle(t, 1e4, j, 2 * s.half));
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    Cache cache(queue(), s.type, {100}, 2, s.dim);
    const Batch batch(queue(), s.type, AttentionBatch(cache.tables, {{&d, 0, 0, 100}}));
    KvStoreArgs args = batch.Store(cache.Tensors());
    const CudaTensor c(queue(), DType::kF32, {100, s.half}, cos);
    const CudaTensor n(queue(), DType::kF32, {100, s.half}, sin);
    args.q = batch.Queries();
    args.cos = c;
    args.sin = n;
    KvStore(queue(), args);

    const int64_t width = (6 + 2 * 2) * s.dim;
    Floats row(100 * width);
    std::vector<std::byte> raw(static_cast<size_t>(100 * width * SizeOf(s.type)));
    queue().CopyToHost(raw.data(), args.q.data, std::ssize(raw));
    for (int64_t i = 0; i < 100 * width; ++i) {
      row[i] = s.type == DType::kBF16 ? ToFloat(reinterpret_cast<const bf16*>(raw.data())[i])
                                      : reinterpret_cast<const float*>(raw.data())[i];
    }
    const Floats k = cache.k.ToFloat();
    const double tolerance = s.type == DType::kBF16 ? 2.0 / 256 : 1e-6;
    for (int64_t t = 0; t < 100; ++t) {
      for (int64_t h = 0; h < 8; ++h) {
        const auto from =
            h < 6 ? d.Query(t).subspan(h * s.dim, s.dim) : d.Key(t).subspan((h - 6) * s.dim, s.dim);
        const auto want = ReferenceRope(from, t, 1e4, 2 * s.half);
        const int64_t page = cache.tables[0][t / 64] * 2 + h - 6;
        const float* got =
            h < 6 ? &row[t * width + h * s.dim] : &k[(page * kKvPage + t % 64) * s.dim];
        for (int64_t i = 0; i < s.dim; ++i) {
          ASSERT_NEAR(got[i], want[i], tolerance * (1 + std::abs(want[i])));
        }
      }
    }
  }
}

TEST_F(AttentionCudaTest, PageScalesMultiply) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    Document d = MakeDocument(type, 13, 300, 4, 2, 64);
    Cache cache(queue(), type, {300}, 2, 64);
    const int64_t pages = cache.k.tensor().dim(0);
    Floats k_scale(pages * 2, 1.0f), v_scale(pages * 2, 1.0f);
    for (size_t i = 0; i < k_scale.size(); i += 3) k_scale[i] = 4.0f, v_scale[i] = 0.5f;
    const CudaTensor ks(queue(), DType::kF32, {pages, 2}, k_scale);
    const CudaTensor vs(queue(), DType::kF32, {pages, 2}, v_scale);
    PagedKv kv = cache.Tensors();
    kv.k_scale = ks;
    kv.v_scale = vs;
    const AttentionBatch b(cache.tables, {{&d, 0, 0, 300}});
    const Batch batch(queue(), type, b);
    const CudaTensor out(queue(), type, {300, 4, 64}), lse(queue(), DType::kF32, {300, 4});
    KvStore(queue(), batch.Store(kv));
    Attention(queue(), batch.Attend(kv, out, lse));
    ExpectRows(type, d, {out.ToFloat(), lse.ToFloat()}, 0, {0, 63, 64, 150, 299});
  }
}

TEST_F(AttentionCudaTest, ScoresFarApartStayFinite) {
  for (const int64_t dim : {128, 64, 32}) {
    Document d = MakeDocument(DType::kBF16, 14, 300, 2, 1, dim);
    for (int64_t t = 0; t < 300; ++t) {
      for (float& x : d.Query(t)) x *= 64.0f;
      for (float& x : d.Key(t)) x *= 64.0f;
    }
    const auto is_finite = [](float x) { return std::isfinite(x); };
    const Result got = Whole(DType::kBF16, d);
    EXPECT_TRUE(std::ranges::all_of(got.out, is_finite));
    EXPECT_TRUE(std::ranges::all_of(got.lse, is_finite));
  }
}

TEST_F(AttentionCudaTest, TheLogSumExpIsOptional) {
  const Document d = MakeDocument(DType::kBF16, 15, 130, 4, 2, 128);
  Cache cache(queue(), DType::kBF16, {130}, 2, 128);
  const Result want = Read(cache, d, 130), last = Attend(cache, {{&d, 0, 129, 1}});
  for (const int64_t count : {130, 1}) {
    const Batch batch(queue(), DType::kBF16,
                      AttentionBatch(cache.tables, {{&d, 0, 130 - count, count}}));
    const CudaTensor out(queue(), DType::kBF16, {count, 4, 128});
    Attention(queue(), batch.Attend(cache.Tensors(), out, Tensor()));
    EXPECT_TRUE(SameBits(out.ToFloat(), count == 1 ? last.out : want.out));
  }
}

TEST_F(AttentionCudaTest, WhatDoesNotFitIsABug) {
  const Document d = MakeDocument(DType::kBF16, 16, 10, 4, 2, 128);
  Cache cache(queue(), DType::kBF16, {10}, 2, 128), wide(queue(), DType::kBF16, {10}, 2, 256);
  const Batch batch(queue(), DType::kBF16, AttentionBatch(cache.tables, {{&d, 0, 0, 10}}));
  const CudaTensor out(queue(), DType::kBF16, {10, 4, 128});
  const AttentionArgs good = batch.Attend(cache.Tensors(), out, Tensor());
  AttentionArgs bad = good;
  bad.kv = wide.Tensors();
  EXPECT_THROW(Attention(queue(), bad), Bug);
  EXPECT_THROW(KvStore(queue(), batch.Store(wide.Tensors())), Bug);
  bad = good;
  bad.q = batch.Part(0, 3);
  EXPECT_THROW(Attention(queue(), bad), Bug) << "3 heads over 2";
  bad = good;
  bad.max_rows = 0;
  EXPECT_THROW(Attention(queue(), bad), Bug);
}

}  // namespace
}  // namespace mm01
