// Lightning's pass and gradients on a GPU against the recurrence in double, and the bits that must
// not depend on the rest of the batch.
#include "kernels/lightning/lightning_backward_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "device/device.h"
#include "kernels/activation/activation_backward_ref.h"
#include "kernels/lightning/lightning_backward_ref.h"
#include "kernels/lightning/lightning_cases.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

// Documents end to end, what flows into them, and what they need: q, k and v as a fused projection
// leaves them, [T, H, 3, K].
struct Problem {
  DType dtype;
  int64_t heads, dim;
  std::vector<int64_t> cu = {0};
  Floats slope, qkv, d_out;
  Floats pre;            // qkv before SiLU, whose gradients are wanted then; or empty
  Floats s_in, d_s_out;  // [N, H, K, V], or empty

  struct Options {
    bool silu = false, through_silu = false, states = true;
    int64_t layer = 3;
    uint64_t stream = 1;
  };

  Problem(DType type, const std::vector<int64_t>& lengths, int64_t num_heads, int64_t head_dim,
          const Options& options)
      : dtype(type),
        heads(num_heads),
        dim(head_dim),
        slope(LightningSlopes(SlopeRule::kOriginal, num_heads, options.layer, 8)) {
    for (const int64_t n : lengths) cu.push_back(cu.back() + n);
    qkv = RandomFloats(options.stream, rows() * width() * 3);
    d_out = RandomFloats(options.stream + 1, rows() * width());
    RoundToType(qkv);
    if (options.through_silu) pre = qkv;
    if (options.silu || options.through_silu) {
      for (float& x : qkv) x = x / (1.0f + std::exp(-x));
    }
    RoundToType(qkv);
    RoundToType(d_out);
    if (!options.states) return;
    s_in = RandomFloats(options.stream + 2, documents() * width() * dim);
    d_s_out = RandomFloats(options.stream + 3, documents() * width() * dim);
  }

  void RoundToType(Floats& values) const {
    if (dtype == DType::kF32) return;
    for (float& x : values) x = ToFloat(ToBF16(x));
  }

  int64_t rows() const { return cu.back(); }
  int64_t documents() const { return std::ssize(cu) - 1; }
  int64_t width() const { return heads * dim; }
  int64_t length(int64_t n) const {
    return cu[static_cast<size_t>(n + 1)] - cu[static_cast<size_t>(n)];
  }

  // Rows begin .. end - 1 as one document.
  Problem Only(int64_t begin, int64_t end) const {
    Problem p = *this;
    const auto cut = [&](const Floats& x, int64_t row) {
      return Floats(x.begin() + begin * row, x.begin() + end * row);
    };
    p.cu = {0, end - begin};
    p.qkv = cut(qkv, 3 * width());
    if (!pre.empty()) p.pre = cut(pre, 3 * width());
    p.d_out = cut(d_out, width());
    return p;
  }
  Problem Document(int64_t n) const {
    Problem p = Only(cu[static_cast<size_t>(n)], cu[static_cast<size_t>(n + 1)]);
    const int64_t size = width() * dim;
    const auto cut = [&](const Floats& x) {
      return x.empty() ? Floats() : Floats(x.begin() + n * size, x.begin() + (n + 1) * size);
    };
    p.s_in = cut(s_in);
    p.d_s_out = cut(d_s_out);
    return p;
  }

  LightningReference Reference() const {
    const auto part_of = [&](const Floats& all, int64_t which) {
      Doubles x;
      for (int64_t i = which; i < std::ssize(all) / dim; i += 3) {
        x.insert(x.end(), all.begin() + i * dim, all.begin() + (i + 1) * dim);
      }
      return x;
    };
    const auto part = [&](int64_t which) { return part_of(qkv, which); };
    const auto doubles = [](const Floats& x) { return Doubles(x.begin(), x.end()); };
    LightningReference r{.heads = heads,
                         .dim = dim,
                         .q = part(0),
                         .k = part(1),
                         .v = part(2),
                         .slope = doubles(slope),
                         .cu_seqlens = cu,
                         .s_in = doubles(s_in),
                         .out = {},
                         .s_out = {},
                         .dq = {},
                         .dk = {},
                         .dv = {},
                         .d_s_in = {}};
    r.Pass();
    r.Backward(doubles(d_out), doubles(d_s_out));
    int64_t which = 0;
    for (Doubles* d : {&r.dq, &r.dk, &r.dv}) {
      const Doubles before = part_of(pre, which++);
      for (size_t i = 0; i < before.size(); ++i) (*d)[i] *= ReferenceSiluSlope(before[i]);
    }
    return r;
  }
};

// All that the two ops write.
struct Results {
  Floats out, s_out, d_qkv, d_s_in;

  // dq, dk or dv [T, H, K]
  Floats Gradient(int64_t which, int64_t dim) const {
    Floats part;
    for (int64_t i = which * dim; i < std::ssize(d_qkv); i += 3 * dim) {
      part.insert(part.end(), d_qkv.begin() + i, d_qkv.begin() + i + dim);
    }
    return part;
  }
};

Tensor PartOf(const Tensor& qkv, int64_t which) {
  const int64_t rows = qkv.dim(0), heads = qkv.dim(1), dim = qkv.dim(3);
  Tensor t(qkv.dtype, static_cast<std::byte*>(qkv.data) + which * dim * SizeOf(qkv.dtype),
           {rows, heads, dim});
  t.stride = {heads * 3 * dim, 3 * dim, 1};
  return t;
}

class LightningBackwardCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto gpu = FindCuda(); !gpu.ok()) GTEST_SKIP() << gpu.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }

  // `hands_on`: the states between segments from the pass to the one back.
  Results Run(const Problem& p, bool hands_on = false) {
    const std::vector<int64_t> by_head = {p.rows(), p.heads, p.dim};
    const std::vector<int64_t> state = {p.documents(), p.heads, p.dim, p.dim};
    const std::vector<int64_t> fused = {p.rows(), p.heads, 3, p.dim};
    const CudaTensor qkv(queue(), p.dtype, fused, p.qkv), d_qkv(queue(), p.dtype, fused);
    const CudaTensor d_out(queue(), p.dtype, by_head, p.d_out), out(queue(), p.dtype, by_head);
    const CudaTensor slope(queue(), DType::kF32, {p.heads}, p.slope);
    const CudaTensor cu = CudaTensor::Int64(queue(), p.cu);
    const CudaTensor s_out(queue(), DType::kF32, state), d_s_in(queue(), DType::kF32, state);
    const auto given = [&](DType type, const std::vector<int64_t>& shape, const Floats& values) {
      return values.empty() ? nullptr : std::make_unique<CudaTensor>(queue(), type, shape, values);
    };
    const auto s_in = given(DType::kF32, state, p.s_in);
    const auto d_s_out = given(DType::kF32, state, p.d_s_out);
    const auto pre = given(p.dtype, fused, p.pre);
    const int64_t num_borders = LightningBorders(Device::kCuda, p.dtype, p.rows(), p.heads, p.dim);
    std::unique_ptr<CudaTensor> borders;
    if (hands_on && num_borders > 0) {
      borders = std::make_unique<CudaTensor>(queue(), DType::kF32,
                                             std::vector<int64_t>{num_borders, p.width() * p.dim});
    }
    const auto tensor = [](const auto& t) { return t ? t->tensor() : Tensor(); };
    const auto pre_part = [&](int64_t which) { return pre ? PartOf(*pre, which) : Tensor(); };
    cuda::LightningPass(queue(), {.q = PartOf(qkv, 0),
                                  .k = PartOf(qkv, 1),
                                  .v = PartOf(qkv, 2),
                                  .slope = slope,
                                  .cu_seqlens = cu,
                                  .s_in = tensor(s_in),
                                  .out = out,
                                  .s_out = s_out,
                                  .borders = tensor(borders)});
    cuda::LightningBackward(queue(), {.q = PartOf(qkv, 0),
                                      .k = PartOf(qkv, 1),
                                      .v = PartOf(qkv, 2),
                                      .slope = slope,
                                      .cu_seqlens = cu,
                                      .s_in = tensor(s_in),
                                      .d_out = d_out,
                                      .d_s_out = tensor(d_s_out),
                                      .dq = PartOf(d_qkv, 0),
                                      .dk = PartOf(d_qkv, 1),
                                      .dv = PartOf(d_qkv, 2),
                                      .d_s_in = d_s_in,
                                      .pre_q = pre_part(0),
                                      .pre_k = pre_part(1),
                                      .pre_v = pre_part(2),
                                      .borders = tensor(borders)});
    return {out.ToFloat(), s_out.ToFloat(), d_qkv.ToFloat(), d_s_in.ToFloat()};
  }

  void ExpectNear(const Problem& p, double tolerance) {
    const Results got = Run(p);
    const LightningReference want = p.Reference();
    EXPECT_LE(RelativeError(got.out, want.out), tolerance) << "out";
    EXPECT_LE(RelativeError(got.Gradient(0, p.dim), want.dq), tolerance) << "dq";
    EXPECT_LE(RelativeError(got.Gradient(1, p.dim), want.dk), tolerance) << "dk";
    EXPECT_LE(RelativeError(got.Gradient(2, p.dim), want.dv), tolerance) << "dv";
    EXPECT_LE(RelativeError(got.s_out, want.s_out), 1e-5) << "s_out";
    EXPECT_LE(RelativeError(got.d_s_in, want.d_s_in), 1e-5) << "d_s_in";
  }

 private:
  std::unique_ptr<Queue> queue_;
};

// Rounding to bf16 is off by 1.66e-3 over many numbers, and by up to 3.9e-3 in one.
double Tolerance(DType dtype, int64_t numbers = 1000) {
  return dtype == DType::kF32 ? 1e-5 : numbers < 1000 ? 3e-3 : 2e-3;
}

TEST_F(LightningBackwardCudaTest, FollowsTheRecurrence) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const LightningCase& c : LightningCases()) {
      for (const int64_t dim : {c.dim, int64_t{128}}) {
        for (const bool states : {false, true}) {
          SCOPED_TRACE(std::string(c.name) + ", " + ToString(dtype) + ", " + std::to_string(dim) +
                       (states ? ", states" : ""));
          const Problem p(dtype, c.lengths, c.heads, dim, {.states = states, .layer = c.layer});
          ExpectNear(p, Tolerance(dtype, p.rows() * p.width()));
        }
      }
    }
  }
}

// More heads of more documents than the GPU has pairs of multiprocessors.
TEST_F(LightningBackwardCudaTest, FollowsTheRecurrenceOverManyItems) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(ToString(dtype));
    ExpectNear(Problem(dtype, {130, 0, 1, 64, 63, 200}, 20, 128, {}), Tolerance(dtype));
  }
}

TEST_F(LightningBackwardCudaTest, GradientsGoBackThroughSilu) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const LightningCase& c : LightningCases()) {
      for (const int64_t dim : {c.dim, int64_t{128}}) {
        SCOPED_TRACE(std::string(c.name) + ", " + ToString(dtype) + ", " + std::to_string(dim));
        const Problem p(dtype, c.lengths, c.heads, dim, {.through_silu = true, .layer = c.layer});
        ExpectNear(p, Tolerance(dtype, p.rows() * p.width()));
      }
    }
    SCOPED_TRACE(ToString(dtype) + ", many items");
    ExpectNear(Problem(dtype, {130, 0, 1, 64, 63, 200}, 20, 128, {.through_silu = true}),
               Tolerance(dtype));
  }
  ExpectNear(Problem(DType::kBF16, {1000}, 4, 128, {.through_silu = true, .states = false}),
             1.75e-3);
}

// Where SiLU is flat, and where its slope is less than half has normal numbers for.
TEST_F(LightningBackwardCudaTest, GradientsGoBackThroughTheTailsOfSilu) {
  Problem p(DType::kBF16, {300}, 2, 128, {.through_silu = true, .states = false});
  for (float& x : p.pre) x *= 6.0f;
  p.RoundToType(p.pre);
  ExpectNear(p, Tolerance(DType::kBF16));
}

TEST_F(LightningBackwardCudaTest, RoundingTheOutputIsAllThatBf16Costs) {
  const Floats first = LightningSlopes(SlopeRule::kOriginal, 64, 0, 80);
  const Floats last = LightningSlopes(SlopeRule::kOriginal, 64, 78, 80);
  for (const bool silu : {false, true}) {
    for (const Floats& all : {first, last}) {
      SCOPED_TRACE(std::string(silu ? "SiLU" : "normal") + ", slopes from " +
                   std::to_string(all[0]));
      Problem p(DType::kBF16, {1000}, 4, 128, {.silu = silu, .states = false});
      p.slope = {all[0], all[21], all[42], all[63]};
      ExpectNear(p, 1.75e-3);
    }
  }
}

// The states of a slow head keep their bits over many blocks.
TEST_F(LightningBackwardCudaTest, LongDocuments) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(ToString(dtype));
    Problem p(dtype, {9001}, 1, 128, {.silu = true});
    p.slope = {LightningSlopes(SlopeRule::kOriginal, 64, 78, 80)[63]};
    ExpectNear(p, Tolerance(dtype));
  }
}

TEST_F(LightningBackwardCudaTest, ADocumentHasTheSameBitsAloneAndInABatch) {
  for (const auto& [dtype, dim] : {std::pair{DType::kBF16, int64_t{128}}, {DType::kF32, 32}}) {
    const Problem p(dtype, {90, 1, 2200, 64, 0, 129, 65}, 12, dim, {.through_silu = true});
    const Results all = Run(p);
    EXPECT_TRUE(SameBits(Run(p).d_qkv, all.d_qkv)) << "another run";
    for (int64_t n = 0; n < p.documents(); ++n) {
      SCOPED_TRACE(ToString(dtype) + ", document " + std::to_string(n));
      const Results alone = Run(p.Document(n));
      const auto part = [&](const Floats& x, int64_t begin, int64_t end, int64_t row) {
        return Floats(x.begin() + begin * row, x.begin() + end * row);
      };
      const int64_t begin = p.cu[static_cast<size_t>(n)], end = begin + p.length(n);
      EXPECT_TRUE(SameBits(part(all.out, begin, end, p.width()), alone.out));
      EXPECT_TRUE(SameBits(part(all.d_qkv, begin, end, 3 * p.width()), alone.d_qkv));
      EXPECT_TRUE(SameBits(part(all.s_out, n, n + 1, p.width() * dim), alone.s_out));
      EXPECT_TRUE(SameBits(part(all.d_s_in, n, n + 1, p.width() * dim), alone.d_s_in));
    }
  }
}

TEST_F(LightningBackwardCudaTest, NeighboursOfNaNChangeNoBit) {
  for (const auto& [dtype, dim] : {std::pair{DType::kBF16, int64_t{128}}, {DType::kF32, 32}}) {
    const Problem good(dtype, {33, 150, 90}, 3, dim, {.through_silu = true, .states = false});
    Problem bad = good;
    for (int64_t t = 0; t < bad.rows(); ++t) {
      if (t >= bad.cu[1] && t < bad.cu[2]) continue;
      std::fill_n(bad.qkv.begin() + t * 3 * bad.width(), 3 * bad.width(), kNaN);
      std::fill_n(bad.pre.begin() + t * 3 * bad.width(), 3 * bad.width(), kNaN);
      std::fill_n(bad.d_out.begin() + t * bad.width(), bad.width(), kNaN);
    }
    const Results want = Run(good), got = Run(bad);
    const auto middle = [&](const Floats& x, int64_t row) {
      return Floats(x.begin() + good.cu[1] * row, x.begin() + good.cu[2] * row);
    };
    EXPECT_TRUE(SameBits(middle(got.out, good.width()), middle(want.out, good.width())));
    EXPECT_TRUE(
        SameBits(middle(got.d_qkv, 3 * good.width()), middle(want.d_qkv, 3 * good.width())));
  }
}

// Few heads of long documents go in segments.
TEST_F(LightningBackwardCudaTest, Segments) {
  for (const bool states : {false, true}) {
    SCOPED_TRACE(states ? "states" : "no states");
    for (const bool through_silu : {false, true}) {
      const Problem p(DType::kBF16, {3, 2049, 0, 4160, 2048, 1}, 2, 128,
                      {.through_silu = through_silu, .states = states, .layer = 7});
      ExpectNear(p, Tolerance(DType::kBF16));
      EXPECT_TRUE(SameBits(Run(p, true).d_qkv, Run(p).d_qkv)) << "borders handed on";
    }
  }
}

// Cut at a border of its blocks and segments, state and gradient crossing it, a document has the
// same numbers but for float32's rounding of the state; where no sum moves, the same bits.
TEST_F(LightningBackwardCudaTest, CutAtABorder) {
  struct Case {
    DType dtype;
    int64_t dim, rows, cut;
  };
  for (const auto& [dtype, dim, rows, cut] :
       {Case{DType::kBF16, 128, 300, 128}, Case{DType::kBF16, 128, 5000, 4096},
        Case{DType::kF32, 48, 300, 128}}) {
    SCOPED_TRACE(ToString(dtype) + ", cut at " + std::to_string(cut));
    const Problem whole(dtype, {rows}, 2, dim, {.states = false});
    Problem before = whole.Only(0, cut), after = whole.Only(cut, rows);
    after.s_in = Run(before).s_out;
    const Results last = Run(after);
    before.d_s_out = last.d_s_in;
    const Results first = Run(before), want = Run(whole);
    const auto joined = [](Floats a, const Floats& b) {
      a.insert(a.end(), b.begin(), b.end());
      return a;
    };
    const Floats out = joined(first.out, last.out), d_qkv = joined(first.d_qkv, last.d_qkv);
    // A bf16 here and there goes to the other neighbour: far less than rounding itself, 1.66e-3.
    const double limit = dtype == DType::kBF16 ? 5e-4 : 1e-6;
    EXPECT_LE(RelativeError(out, want.out), limit);
    EXPECT_LE(RelativeError(d_qkv, want.d_qkv), limit);
    if (dtype == DType::kBF16 && rows <= 2048) {
      EXPECT_TRUE(SameBits(out, want.out));
      const Floats dv = joined(first.Gradient(2, dim), last.Gradient(2, dim));
      EXPECT_TRUE(SameBits(dv, want.Gradient(2, dim)));
    }
    EXPECT_LE(RelativeError(last.s_out, want.s_out), 1e-6);
  }
}

TEST_F(LightningBackwardCudaTest, MistakesOfOursAreBugs) {
  const CudaTensor rows(queue(), DType::kF32, {8, 2, 32}), other(queue(), DType::kF32, {8, 2, 16});
  const CudaTensor slope(queue(), DType::kF32, {2}), state(queue(), DType::kF32, {1, 2, 32, 32});
  const CudaTensor cu = CudaTensor::Int64(queue(), {0, 8});
  const LightningPassArgs pass{.q = rows,
                               .k = rows,
                               .v = rows,
                               .slope = slope,
                               .cu_seqlens = cu,
                               .s_in = {},
                               .out = rows,
                               .s_out = {}};
  LightningPassArgs bad = pass;
  bad.out = other;
  EXPECT_THROW(cuda::LightningPass(queue(), bad), Bug);
  bad = pass;
  bad.s_out = other;
  EXPECT_THROW(cuda::LightningPass(queue(), bad), Bug);
  EXPECT_THROW(cuda::LightningBackward(queue(), {.q = rows,
                                                 .k = rows,
                                                 .v = rows,
                                                 .slope = slope,
                                                 .cu_seqlens = cu,
                                                 .s_in = {},
                                                 .d_out = rows,
                                                 .d_s_out = state,
                                                 .dq = rows,
                                                 .dk = rows,
                                                 .dv = rows,
                                                 .d_s_in = state}),
               Bug);
}

}  // namespace
}  // namespace mm01
