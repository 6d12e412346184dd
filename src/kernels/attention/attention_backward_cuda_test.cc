// Attention over packed documents and its gradients on a GPU: against the formulas in double, and
// the bits that must not depend on the rest of the batch.
#include "kernels/attention/attention_backward_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/attention/attention_backward_ref.h"
#include "testing/arrays.h"
#include "testing/cuda_test.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

struct Case {
  const char* name;
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, dim;
};

const Case kCases[] = {{"one token", {1}, 2, 1, 64},
                       {"a tile but one", {63}, 2, 2, 64},
                       {"a tile", {64}, 2, 1, 128},
                       {"a tile and one", {65}, 4, 2, 64},
                       {"two tiles", {128}, 1, 1, 128},
                       {"two tiles and one", {129}, 2, 1, 128},
                       {"ragged", {5, 0, 130, 1, 64, 200}, 4, 2, 128},
                       {"a group of three", {50, 190}, 3, 1, 64},
                       {"a prime, the released group", {331}, 8, 1, 128},
                       {"stages again and again", {1, 900}, 2, 1, 128},
                       {"stages again and again, 64", {700, 67}, 2, 2, 64},
                       {"no tensor cores", {5, 0, 130, 1, 64}, 4, 2, 48}};

// Documents, and what their results need. A row of qkv is q [H, K], k [G, K] and v [G, K].
struct Problem {
  DType dtype;
  int64_t heads, kv_heads, dim;
  std::vector<int64_t> cu = {0};
  Floats qkv, d_out;

  Problem(DType type, const Case& c)
      : dtype(type), heads(c.heads), kv_heads(c.kv_heads), dim(c.dim) {
    for (const int64_t n : c.lengths) cu.push_back(cu.back() + n);
    qkv = RandomBF16s(1, rows() * width());
    d_out = RandomBF16s(2, rows() * heads * dim);
  }

  int64_t rows() const { return cu.back(); }
  int64_t width() const { return (heads + 2 * kv_heads) * dim; }

  Problem Document(size_t n) const {
    Problem p = *this;
    const auto cut = [&](const Floats& x, int64_t row) {
      return Floats(x.begin() + cu[n] * row, x.begin() + cu[n + 1] * row);
    };
    p.cu = {0, cu[n + 1] - cu[n]};
    p.qkv = cut(qkv, width());
    p.d_out = cut(d_out, heads * dim);
    return p;
  }

  AttentionPassReference Reference() const {
    AttentionPassReference r{.heads = heads,
                             .kv_heads = kv_heads,
                             .dim = dim,
                             .q = {},
                             .k = {},
                             .v = {},
                             .cu_seqlens = cu,
                             .out = {},
                             .lse = {},
                             .dq = {},
                             .dk = {},
                             .dv = {}};
    for (int64_t t = 0; t < rows(); ++t) {
      const auto row = qkv.begin() + t * width();
      r.q.insert(r.q.end(), row, row + heads * dim);
      r.k.insert(r.k.end(), row + heads * dim, row + (heads + kv_heads) * dim);
      r.v.insert(r.v.end(), row + (heads + kv_heads) * dim, row + width());
    }
    r.Pass();
    r.Backward(Doubles(d_out.begin(), d_out.end()));
    return r;
  }
};

// Heads first .. first + count - 1 of rows [T, all, K].
Tensor Part(const Tensor& rows, int64_t first, int64_t count) {
  const int64_t all = rows.dim(1), dim = rows.dim(2);
  Tensor t(rows.dtype, static_cast<std::byte*>(rows.data) + first * dim * SizeOf(rows.dtype),
           {rows.dim(0), count, dim});
  t.stride[0] = all * dim;
  return t;
}

struct Results {
  int64_t heads, kv_heads, dim;
  Floats out, lse, d_qkv;

  Floats Gradient(int64_t first, int64_t count) const {
    Floats part;
    const int64_t width = (heads + 2 * kv_heads) * dim;
    for (int64_t at = first * dim; at < std::ssize(d_qkv); at += width) {
      part.insert(part.end(), d_qkv.begin() + at, d_qkv.begin() + at + count * dim);
    }
    return part;
  }
  Floats dq() const { return Gradient(0, heads); }
  Floats dk() const { return Gradient(heads, kv_heads); }
  Floats dv() const { return Gradient(heads + kv_heads, kv_heads); }
};

class AttentionBackwardCudaTest : public CudaTest {
 protected:
  Results Run(const Problem& p) {
    const int64_t h = p.heads, g = p.kv_heads;
    const CudaTensor qkv(queue(), p.dtype, {p.rows(), h + 2 * g, p.dim}, p.qkv);
    const CudaTensor d_qkv(queue(), p.dtype, {p.rows(), h + 2 * g, p.dim});
    const CudaTensor d_out(queue(), p.dtype, {p.rows(), h, p.dim}, p.d_out);
    const CudaTensor out(queue(), p.dtype, {p.rows(), h, p.dim});
    const CudaTensor lse(queue(), DType::kF32, {p.rows(), h});
    const CudaTensor cu = CudaTensor::Int64(queue(), p.cu);
    const Tensor q = Part(qkv, 0, h), k = Part(qkv, h, g), v = Part(qkv, h + g, g);
    cuda::AttentionPass(queue(), {q, k, v, cu, out, lse});
    cuda::AttentionBackward(queue(), {.q = q,
                                      .k = k,
                                      .v = v,
                                      .cu_seqlens = cu,
                                      .out = out,
                                      .lse = lse,
                                      .d_out = d_out,
                                      .dq = Part(d_qkv, 0, h),
                                      .dk = Part(d_qkv, h, g),
                                      .dv = Part(d_qkv, h + g, g)});
    return {h, g, p.dim, out.ToFloat(), lse.ToFloat(), d_qkv.ToFloat()};
  }
};

TEST_F(AttentionBackwardCudaTest, FollowsTheReference) {
  for (const Case& c : kCases) {
    const AttentionPassReference want = Problem(DType::kF32, c).Reference();
    for (const DType type : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(std::string(c.name) + ", " + ToString(type));
      const Results got = Run(Problem(type, c));
      const double limit = GradientLimit(type, std::ssize(got.out));
      EXPECT_LE(RelativeError(got.out, want.out), limit) << "out";
      ExpectAllNear(got.lse, want.lse, type == DType::kF32 ? 1e-5 : 1e-4);
      EXPECT_LE(RelativeError(got.dv(), want.dv), limit) << "dv";
      if (std::ssize(c.lengths) == 1 && c.lengths[0] == 1) continue;  // no gradient but rounding
      EXPECT_LE(RelativeError(got.dq(), want.dq), limit) << "dq";
      EXPECT_LE(RelativeError(got.dk(), want.dk), limit) << "dk";
    }
  }
}

const Case kBatch = {"batch", {90, 1, 700, 64, 0, 129, 65}, 4, 2, 128};

TEST_F(AttentionBackwardCudaTest, ADocumentHasTheSameBitsAloneAndInABatch) {
  for (const DType type : {DType::kBF16, DType::kF32}) {
    const Problem p(type, kBatch);
    const Results all = Run(p), again = Run(p);
    EXPECT_TRUE(SameBits(again.out, all.out));
    EXPECT_TRUE(SameBits(again.d_qkv, all.d_qkv));
    for (size_t n = 0; n + 1 < p.cu.size(); ++n) {
      SCOPED_TRACE(ToString(type) + ", document " + std::to_string(n));
      const Results alone = Run(p.Document(n));
      const auto part = [&](const Floats& x, int64_t row) {
        return Floats(x.begin() + p.cu[n] * row, x.begin() + p.cu[n + 1] * row);
      };
      EXPECT_TRUE(SameBits(part(all.out, p.heads * p.dim), alone.out));
      EXPECT_TRUE(SameBits(part(all.lse, p.heads), alone.lse));
      EXPECT_TRUE(SameBits(part(all.d_qkv, p.width()), alone.d_qkv));
    }
  }
}

TEST_F(AttentionBackwardCudaTest, NeighboursOfNaNChangeNoBit) {
  for (const int64_t dim : {64, 128, 32}) {
    const Problem good(DType::kBF16, {"", {33, 150, 90}, 4, 2, dim});
    Problem bad = good;
    for (int64_t t = 0; t < bad.rows(); ++t) {
      if (t >= bad.cu[1] && t < bad.cu[2]) continue;
      std::fill_n(bad.qkv.begin() + t * bad.width(), bad.width(), kNaN);
      std::fill_n(bad.d_out.begin() + t * bad.heads * dim, bad.heads * dim, kNaN);
    }
    const Results want = Run(good), got = Run(bad);
    const auto middle = [&](const Floats& x, int64_t row) {
      return Floats(x.begin() + good.cu[1] * row, x.begin() + good.cu[2] * row);
    };
    SCOPED_TRACE(dim);
    EXPECT_TRUE(SameBits(middle(got.out, good.heads * dim), middle(want.out, good.heads * dim)));
    EXPECT_TRUE(SameBits(middle(got.d_qkv, good.width()), middle(want.d_qkv, good.width())));
  }
}

// More tiles than the GPU has multiprocessors, and float32 beside it, whose kernels are others.
TEST_F(AttentionBackwardCudaTest, LongDocuments) {
  const Case c = {"long", {5000, 3000, 200, 200}, 4, 1, 128};
  const Results want = Run(Problem(DType::kF32, c)), got = Run(Problem(DType::kBF16, c));
  EXPECT_LE(RelativeError(got.out, want.out), 3e-3);
  EXPECT_LE(RelativeError(got.dq(), want.dq()), 3e-3);
  EXPECT_LE(RelativeError(got.dk(), want.dk()), 3e-3);
  EXPECT_LE(RelativeError(got.dv(), want.dv()), 3e-3);
}

TEST_F(AttentionBackwardCudaTest, NoRowsAndMistakesOfOurs) {
  const auto rows = [&](int64_t n, int64_t heads) {
    return CudaTensor(queue(), DType::kBF16, {n, heads, 64});
  };
  const CudaTensor none = rows(0, 2), q = rows(3, 2), k = rows(3, 1), short_out = rows(2, 2);
  const CudaTensor no_lse(queue(), DType::kF32, {0, 2}), lse(queue(), DType::kF32, {3, 2});
  const CudaTensor empty = CudaTensor::Int64(queue(), {0}), cu = CudaTensor::Int64(queue(), {0, 3});
  cuda::AttentionPass(queue(), {none, none, none, empty, none, no_lse});
  cuda::AttentionBackward(queue(), {none, none, none, empty, none, no_lse, none, none, none, none});
  EXPECT_THROW(cuda::AttentionPass(queue(), {q, k, k, cu, short_out, lse}), Bug);
  EXPECT_THROW(cuda::AttentionPass(queue(), {k, q, q, cu, k, lse}), Bug);
}

}  // namespace
}  // namespace mm01
