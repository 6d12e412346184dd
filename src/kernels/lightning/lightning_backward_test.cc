// The gradients of lightning attention: the reference against finite differences, the op against
// the reference, and what packing, cutting and threads must not change.
#include "kernels/lightning/lightning_backward.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/activation/activation_backward_ref.h"
#include "kernels/lightning/lightning_backward_ref.h"
#include "kernels/lightning/lightning_cases.h"
#include "testing/arrays.h"
#include "testing/gradients.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

std::vector<int64_t> Offsets(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> cu = {0};
  for (const int64_t n : lengths) cu.push_back(cu.back() + n);
  return cu;
}

// Random inputs that float32 holds, with states and their gradients at both ends.
struct Problem {
  LightningReference ref;
  Doubles d_out, d_s_out;
  Doubles pre_q, pre_k, pre_v;  // where q, k and v are SiLU of them

  explicit Problem(const LightningCase& c) {
    const int64_t rows = Offsets(c.lengths).back(), n = rows * c.heads * c.dim;
    const int64_t states = std::ssize(c.lengths) * c.heads * c.dim * c.dim;
    const auto random = [](uint64_t stream, int64_t count) {
      return ToDoubles(RandomFloats(stream, count));
    };
    ref = {.heads = c.heads,
           .dim = c.dim,
           .q = random(1, n),
           .k = random(2, n),
           .v = random(3, n),
           .slope = ToDoubles(LightningSlopes(SlopeRule::kOriginal, c.heads, c.layer, 8)),
           .cu_seqlens = Offsets(c.lengths),
           .s_in = random(4, states)};
    d_out = random(5, n);
    d_s_out = random(6, states);
  }

  void ComeFromSilu() {
    for (const auto& [pre, x] : {std::pair{&pre_q, &ref.q}, {&pre_k, &ref.k}, {&pre_v, &ref.v}}) {
      *pre = *x;
      for (double& number : *x)
        number = static_cast<double>(static_cast<float>(ReferenceSilu(number)));
    }
  }
};

// The gradient of what SiLU was taken of.
Doubles ThroughSilu(Doubles d, const Doubles& pre) {
  for (size_t i = 0; i < d.size(); ++i) d[i] *= ReferenceSiluSlope(pre[i]);
  return d;
}

// The op's results for the inputs of a reference.
struct Results {
  PoisonedVector<float> out, s_out, dq, dk, dv, d_s_in;

  Results(const Problem& p, Queue& queue)
      : out(p.ref.q.size()),
        s_out(p.ref.s_in.size()),
        dq(p.ref.q.size()),
        dk(p.ref.q.size()),
        dv(p.ref.q.size()),
        d_s_in(p.ref.s_in.size()) {
    const LightningReference& r = p.ref;
    const int64_t documents = r.documents(), rows = r.cu_seqlens.back();
    Floats q = ToFloats(r.q), k = ToFloats(r.k), v = ToFloats(r.v), slope = ToFloats(r.slope);
    Floats pre_q = ToFloats(p.pre_q), pre_k = ToFloats(p.pre_k), pre_v = ToFloats(p.pre_v);
    Floats s_in = ToFloats(r.s_in), d_out = ToFloats(p.d_out), d_s_out = ToFloats(p.d_s_out);
    std::vector<int64_t> cu = r.cu_seqlens;
    const auto by_head = [&](auto& x) { return Tensor(x.data(), {rows, r.heads, r.dim}); };
    const auto states = [&](auto& x) {
      return Tensor(x.data(), {documents, r.heads, r.dim, r.dim});
    };
    const Tensor slopes(slope.data(), {r.heads}), offsets(cu.data(), {documents + 1});
    LightningPass(queue, {.q = by_head(q),
                          .k = by_head(k),
                          .v = by_head(v),
                          .slope = slopes,
                          .cu_seqlens = offsets,
                          .s_in = states(s_in),
                          .out = by_head(out),
                          .s_out = states(s_out)});
    LightningBackward(queue, {.q = by_head(q),
                              .k = by_head(k),
                              .v = by_head(v),
                              .slope = slopes,
                              .cu_seqlens = offsets,
                              .s_in = states(s_in),
                              .d_out = by_head(d_out),
                              .d_s_out = states(d_s_out),
                              .dq = by_head(dq),
                              .dk = by_head(dk),
                              .dv = by_head(dv),
                              .d_s_in = states(d_s_in),
                              .pre_q = by_head(pre_q),
                              .pre_k = by_head(pre_k),
                              .pre_v = by_head(pre_v)});
  }
};

TEST(LightningBackwardTest, ReferenceAgreesWithFiniteDifferences) {
  Problem p({.name = "", .lengths = {5, 1, 4}, .heads = 2, .dim = 3});
  LightningReference& r = p.ref;
  r.Backward(p.d_out, p.d_s_out);
  const auto loss = [&] {
    r.Pass();
    return Dot(r.out, p.d_out) + Dot(r.s_out, p.d_s_out);
  };
  ExpectGradient(loss, r.q, Doubles(r.dq));
  ExpectGradient(loss, r.k, Doubles(r.dk));
  ExpectGradient(loss, r.v, Doubles(r.dv));
  ExpectGradient(loss, r.s_in, Doubles(r.d_s_in));
}

// One head of one number with a decay of 1/2, two tokens: o_1 = q k_1 v_1, o_2 = q (k_2 v_2 + k_1
// v_1 / 2), so with everything 1 and d_out 1: dv_1 = 1 + 1/2, dv_2 = 1, dq_2 = 1.5, dS_in = 3/4.
TEST(LightningBackwardTest, ReferenceByHand) {
  LightningReference r{.heads = 1,
                       .dim = 1,
                       .q = {1, 1},
                       .k = {1, 1},
                       .v = {1, 1},
                       .slope = {std::log(2.0)},
                       .cu_seqlens = {0, 2},
                       .s_in = {}};
  r.Pass();
  EXPECT_DOUBLE_EQ(r.out[1], 1.5);
  r.Backward({1, 1}, {});
  EXPECT_DOUBLE_EQ(r.dv[0], 1.5);
  EXPECT_DOUBLE_EQ(r.dk[1], 1.0);
  EXPECT_DOUBLE_EQ(r.dq[1], 1.5);
  EXPECT_DOUBLE_EQ(r.d_s_in[0], 0.75);
}

TEST(LightningBackwardTest, PackedReferenceEqualsDocumentsAlone) {
  Problem packed({.name = "", .lengths = {7, 3, 9}, .heads = 2, .dim = 4});
  packed.ref.s_in.clear();
  packed.ref.Pass();
  packed.ref.Backward(packed.d_out, {});
  const auto rows = [&](const Doubles& x, int64_t n) {
    const int64_t width = 2 * 4;
    return Doubles(x.begin() + packed.ref.cu_seqlens[static_cast<size_t>(n)] * width,
                   x.begin() + packed.ref.cu_seqlens[static_cast<size_t>(n + 1)] * width);
  };
  for (int64_t n = 0; n < 3; ++n) {
    LightningReference alone{.heads = 2,
                             .dim = 4,
                             .q = rows(packed.ref.q, n),
                             .k = rows(packed.ref.k, n),
                             .v = rows(packed.ref.v, n),
                             .slope = packed.ref.slope,
                             .cu_seqlens = {0, std::ssize(rows(packed.ref.q, n)) / 8},
                             .s_in = {}};
    alone.Pass();
    alone.Backward(rows(packed.d_out, n), {});
    EXPECT_LE(RelativeError(rows(packed.ref.out, n), alone.out), 1e-10);
    EXPECT_LE(RelativeError(rows(packed.ref.dq, n), alone.dq), 1e-10);
    EXPECT_LE(RelativeError(rows(packed.ref.dk, n), alone.dk), 1e-10);
    EXPECT_LE(RelativeError(rows(packed.ref.dv, n), alone.dv), 1e-10);
  }
}

TEST(LightningBackwardTest, FollowsTheReference) {
  for (const LightningCase& c : LightningCases()) {
    SCOPED_TRACE(c.name);
    Problem p(c);
    p.ref.Pass();
    p.ref.Backward(p.d_out, p.d_s_out);
    OnEverySimdTarget([&] {
      Queue queue(2);
      const Results got(p, queue);
      EXPECT_LE(RelativeError(got.out, p.ref.out), 1e-6);
      EXPECT_LE(RelativeError(got.s_out, p.ref.s_out), 1e-6);
      EXPECT_LE(RelativeError(got.dq, p.ref.dq), 1e-6);
      EXPECT_LE(RelativeError(got.dk, p.ref.dk), 1e-6);
      EXPECT_LE(RelativeError(got.dv, p.ref.dv), 1e-6);
      EXPECT_LE(RelativeError(got.d_s_in, p.ref.d_s_in), 1e-6);
    });
  }
}

TEST(LightningBackwardTest, GradientsGoBackThroughSilu) {
  Problem p({.name = "", .lengths = {70, 1, 130}, .heads = 3, .dim = 32});
  p.ComeFromSilu();
  p.ref.Backward(p.d_out, p.d_s_out);
  OnEverySimdTarget([&] {
    Queue queue(2);
    const Results got(p, queue);
    EXPECT_LE(RelativeError(got.dq, ThroughSilu(p.ref.dq, p.pre_q)), 1e-6);
    EXPECT_LE(RelativeError(got.dk, ThroughSilu(p.ref.dk, p.pre_k)), 1e-6);
    EXPECT_LE(RelativeError(got.dv, ThroughSilu(p.ref.dv, p.pre_v)), 1e-6);
    EXPECT_LE(RelativeError(got.d_s_in, p.ref.d_s_in), 1e-6);
  });
}

TEST(LightningBackwardTest, ThreadsDoNotChangeBits) {
  const Problem p({.name = "", .lengths = {70, 130, 9}, .heads = 3, .dim = 32});
  Queue one(1), three(3);
  const Results a(p, one), b(p, three);
  EXPECT_TRUE(SameBits(b.out, a.out));
  EXPECT_TRUE(SameBits(b.dq, a.dq));
  EXPECT_TRUE(SameBits(b.dk, a.dk));
  EXPECT_TRUE(SameBits(b.dv, a.dv));
}

// q, k and v side by side in one row, as the fused projection leaves them, cut after two blocks:
// state and gradient cross the border and nothing changes but the last bits.
TEST(LightningBackwardTest, StridedAndCutAtABorder) {
  constexpr int64_t kRows = 200, kCut = 128, kHeads = 2, kDim = 16, kWidth = 3 * kHeads * kDim;
  constexpr int64_t kState = kHeads * kDim * kDim;
  Queue queue(2);
  Floats qkv = RandomFloats(1, kRows * kWidth), pre = RandomFloats(3, kRows * kWidth);
  Floats d_out = RandomFloats(2, kRows * kHeads * kDim);
  Floats slope = LightningSlopes(SlopeRule::kOriginal, kHeads, 5, 8);
  const auto third = [&](Floats& x, int64_t i) {
    Tensor t(x.data() + i * kDim, {kRows, kHeads, kDim});
    t.stride = {kWidth, 3 * kDim, 1};
    return t;
  };
  const auto run = [&](int64_t begin, int64_t end, Floats* s_in, Floats* s_out, Floats* g_out,
                       Floats* g_in, Floats& d_qkv, Floats& out) {
    int64_t cu[] = {0, end - begin};
    const auto state = [&](Floats* s) {
      return s ? Tensor(s->data(), {1, kHeads, kDim, kDim}) : Tensor();
    };
    const auto rows = [&](const Tensor& t) { return t.Rows(begin, end); };
    const Tensor outputs(out.data(), {kRows, kHeads, kDim});
    const Tensor slopes(slope.data(), {kHeads}), offsets(cu, {2});
    LightningPass(queue, {rows(third(qkv, 0)), rows(third(qkv, 1)), rows(third(qkv, 2)), slopes,
                          offsets, state(s_in), rows(outputs), state(s_out)});
    LightningBackward(
        queue, {rows(third(qkv, 0)), rows(third(qkv, 1)), rows(third(qkv, 2)), slopes, offsets,
                state(s_in), rows(Tensor(d_out.data(), {kRows, kHeads, kDim})), state(g_out),
                rows(third(d_qkv, 0)), rows(third(d_qkv, 1)), rows(third(d_qkv, 2)), state(g_in),
                rows(third(pre, 0)), rows(third(pre, 1)), rows(third(pre, 2))});
  };
  Floats whole(qkv.size()), cut(qkv.size()), out(d_out.size()), out_cut(d_out.size());
  run(0, kRows, nullptr, nullptr, nullptr, nullptr, whole, out);
  Floats s(kState), g(kState), unused(qkv.size());
  run(0, kCut, nullptr, &s, nullptr, nullptr, unused, out_cut);
  run(kCut, kRows, &s, nullptr, nullptr, &g, cut, out_cut);
  run(0, kCut, nullptr, nullptr, &g, nullptr, cut, out_cut);
  EXPECT_LE(RelativeError(out_cut, out), 1e-6);
  EXPECT_LE(RelativeError(cut, whole), 1e-6);
}

}  // namespace
}  // namespace mm01
