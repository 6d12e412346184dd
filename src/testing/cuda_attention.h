// Attention on a GPU, for tests: documents, caches and batches in its memory.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cases.h"
#include "kernels/attention/attention_ref.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/near.h"

namespace mm01 {

inline constexpr int64_t kAnyRows = 1 << 20;  // as max_rows: take the path of long inputs
inline constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Root mean square of the relative errors of bf16 rows. Rounding the output costs 1.65e-3 by
// itself; rounding the weights, as the tensor cores want them, 1.5e-3 more where inputs are long.
// Decode has the time to take weights in two terms.
inline constexpr double kDecodeTolerance = 2e-3, kPrefillTolerance = 2.4e-3;

inline float Rounded(DType type, float x) {
  return type == DType::kBF16 ? ToFloat(ToBF16(x)) : x;
}

inline AttentionDocument MakeDocument(DType type, uint64_t stream, int64_t rows, int64_t heads,
                                      int64_t kv_heads, int64_t dim) {
  AttentionDocument d(stream, rows, heads, kv_heads, dim);
  for (float& x : d.qkv) x = Rounded(type, x);
  return d;
}

struct CudaResult {
  std::vector<float> out, lse;

  void Append(const CudaResult& r) {
    out.insert(out.end(), r.out.begin(), r.out.end());
    lse.insert(lse.end(), r.lse.begin(), r.lse.end());
  }
  CudaResult Rows(int64_t begin, int64_t end, int64_t heads) const {
    const int64_t dim = std::ssize(out) / std::ssize(lse);
    return {{out.begin() + begin * heads * dim, out.begin() + end * heads * dim},
            {lse.begin() + begin * heads, lse.begin() + end * heads}};
  }
};

inline testing::AssertionResult SameResult(const CudaResult& got, const CudaResult& want) {
  const auto out = SameBits(got.out, want.out);
  return out ? SameBits(got.lse, want.lse) : out;
}

// One layer's pages in the GPU's memory, poisoned.
struct CudaCache {
  DType type;
  std::vector<std::vector<int32_t>> tables;
  CudaTensor k, v;

  CudaCache(Queue& queue, DType t, const AttentionCache<bf16>& layout)
      : type(t), tables(layout.tables), k(queue, t, Shape(layout)), v(queue, t, Shape(layout)) {}
  CudaCache(Queue& queue, DType t, const std::vector<int64_t>& rows, int64_t kv_heads, int64_t dim,
            uint64_t seed = 0)
      : CudaCache(queue, t, AttentionCache<bf16>(rows, kv_heads, dim, seed)) {}

  static std::vector<int64_t> Shape(const AttentionCache<bf16>& c) {
    return {c.num_pages, c.kv_heads, kKvPage * c.dim};
  }
  PagedKv Tensors() const { return {.k = k, .v = v}; }
};

// An AttentionBatch in the GPU's memory.
class CudaBatch {
 public:
  CudaBatch(Queue& queue, DType type, const AttentionBatch& b, int64_t max_rows = 0)
      : type_(type),
        host_(b),
        max_rows_(max_rows),
        qkv_(queue, type, {b.num_rows, Width()}, b.qkv),
        cu_(CudaTensor::Int64(queue, b.cu)),
        position_(CudaTensor::Int64(queue, b.position)),
        kv_start_(CudaTensor::Int64(queue, b.kv_start)),
        kv_length_(CudaTensor::Int64(queue, b.kv_length)),
        table_(CudaTensor::Int32(queue, {b.num_seqs, b.table_width}, b.table)) {
    for (int64_t n = 0; max_rows == 0 && n < b.num_seqs; ++n) {
      max_rows_ = std::max(max_rows_, b.cu[n + 1] - b.cu[n]);
    }
  }

  Tensor Part(int64_t first_head, int64_t num_heads) const {
    auto* data = static_cast<std::byte*>(qkv_.tensor().data);
    Tensor t(type_, data + first_head * host_.dim * SizeOf(type_),
             {host_.num_rows, num_heads, host_.dim});
    t.stride[0] = Width();
    return t;
  }
  Tensor Queries() const { return Part(0, host_.heads); }
  KvStoreArgs Store(const PagedKv& kv) const {
    return {.k = Part(host_.heads, host_.kv_heads),
            .v = Part(host_.heads + host_.kv_heads, host_.kv_heads),
            .cu_seqlens = cu_,
            .position = position_,
            .kv_start = kv_start_,
            .block_table = table_,
            .max_rows = max_rows_,
            .kv = kv};
  }
  AttentionArgs Attend(const PagedKv& kv, const Tensor& out, const Tensor& lse) const {
    return {.q = Queries(),
            .cu_seqlens = cu_,
            .position = position_,
            .kv_start = kv_start_,
            .kv_length = kv_length_,
            .block_table = table_,
            .max_rows = max_rows_,
            .kv = kv,
            .out = out,
            .lse = lse};
  }

 private:
  int64_t Width() const { return (host_.heads + 2 * host_.kv_heads) * host_.dim; }

  DType type_;
  AttentionBatch host_;
  int64_t max_rows_;
  CudaTensor qkv_, cu_, position_, kv_start_, kv_length_, table_;
};

class AttentionCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto cuda = FindCuda(); !cuda.ok()) GTEST_SKIP() << "no GPU";
    queue_.emplace(8, Device::kCuda);
  }
  Queue& queue() { return *queue_; }

  void Store(CudaCache& cache, const std::vector<AttentionPiece>& pieces) {
    const CudaBatch batch(queue(), cache.type, AttentionBatch(cache.tables, pieces));
    KvStore(queue(), batch.Store(cache.Tensors()));
    queue().Wait();
  }
  CudaResult Attend(const CudaCache& cache, const std::vector<AttentionPiece>& pieces,
                    int64_t max_rows = 0) {
    const AttentionBatch b(cache.tables, pieces);
    const CudaBatch batch(queue(), cache.type, b, max_rows);
    const CudaTensor out(queue(), cache.type, {b.num_rows, b.heads, b.dim});
    const CudaTensor lse(queue(), DType::kF32, {b.num_rows, b.heads});
    Attention(queue(), batch.Attend(cache.Tensors(), out, lse));
    return {out.ToFloat(), lse.ToFloat()};
  }
  // The whole document as sequence 0, in chunks that are stored as they come.
  CudaResult Read(CudaCache& cache, const AttentionDocument& d, int64_t chunk,
                  int64_t max_rows = 0) {
    CudaResult all;
    for (int64_t at = 0; at < d.rows(); at += chunk) {
      const std::vector<AttentionPiece> pieces = {{&d, 0, at, std::min(chunk, d.rows() - at)}};
      Store(cache, pieces);
      all.Append(Attend(cache, pieces, max_rows));
    }
    return all;
  }
  CudaResult Whole(DType type, const AttentionDocument& d) {
    CudaCache cache(queue(), type, {d.rows()}, d.kv_heads, d.dim);
    return Read(cache, d, d.rows());
  }

  // Of a result whose rows are first, first + 1, ... of a document: these rows of the document.
  // bf16 rows keep to half a unit of the last place each and, if they have elements enough for an
  // average, to the tolerance together.
  void ExpectRows(DType type, AttentionDocument& d, const CudaResult& got, int64_t first,
                  const std::vector<int64_t>& rows, double tolerance = kPrefillTolerance) {
    std::vector<float> k, v;
    for (int64_t t = 0; t <= rows.back(); ++t) {
      k.insert(k.end(), d.Key(t).begin(), d.Key(t).end());
      v.insert(v.end(), d.Value(t).begin(), d.Value(t).end());
    }
    std::vector<AttentionReference> want(rows.size());
    queue().pool().ParallelFor(std::ssize(rows), [&](int64_t i, int) {
      const int64_t t = rows[i];
      want[i] = ReferenceAttention(d.Query(t), k, v, d.kv_heads, d.dim, 0, t + 1);
    });
    double squares = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      const CudaResult row = got.Rows(rows[i] - first, rows[i] - first + 1, d.heads);
      const double error = RelativeError(row.out, want[i].out);
      EXPECT_LE(error, type == DType::kBF16 ? 1.0 / 256 : 1e-5) << "row " << rows[i];
      squares += error * error;
      ExpectAllNear(row.lse, want[i].lse, 2e-5);
    }
    const int64_t elements = std::ssize(rows) * d.heads * d.dim;
    if (type == DType::kBF16 && elements >= 1024) {
      EXPECT_LE(std::sqrt(squares / static_cast<double>(rows.size())), tolerance);
    }
  }
  void ExpectAgrees(DType type, const AttentionCase& c) {
    SCOPED_TRACE(c.name);
    SCOPED_TRACE(ToString(type));
    AttentionDocument d = MakeDocument(type, 4, c.rows, c.heads, c.kv_heads, c.dim);
    std::vector<int64_t> rows;
    for (int64_t t = 0; t < c.rows; t += t < 3 || t > c.rows - 4 || t % 64 > 61 ? 1 : 7) {
      rows.push_back(t);
    }
    ExpectRows(type, d, Whole(type, d), 0, rows);
  }

 private:
  std::optional<Queue> queue_;
};

}  // namespace mm01
