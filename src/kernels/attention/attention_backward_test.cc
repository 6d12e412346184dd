// Attention over packed documents and its gradients: the reference against finite differences and
// the op against the reference.
#include "kernels/attention/attention_backward.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/attention/attention_backward_ref.h"
#include "testing/arrays.h"
#include "testing/gradients.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

struct Case {
  const char* name;
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, dim;
};

const Case kCases[] = {{"one token", {1}, 1, 1, 16},
                       {"a tile", {64}, 2, 2, 16},
                       {"a tile and one, grouped", {65}, 4, 2, 32},
                       {"a group of three", {50, 90}, 3, 1, 16},
                       {"ragged", {5, 0, 130, 1, 64}, 4, 2, 16},
                       {"the released head", {131}, 8, 1, 128}};

AttentionPassReference MakeReference(const Case& c) {
  std::vector<int64_t> cu = {0};
  for (const int64_t n : c.lengths) cu.push_back(cu.back() + n);
  const auto random = [](uint64_t stream, int64_t n) { return ToDoubles(RandomFloats(stream, n)); };
  return {.heads = c.heads,
          .kv_heads = c.kv_heads,
          .dim = c.dim,
          .q = random(1, cu.back() * c.heads * c.dim),
          .k = random(2, cu.back() * c.kv_heads * c.dim),
          .v = random(3, cu.back() * c.kv_heads * c.dim),
          .cu_seqlens = cu};
}

// The op's results for the inputs of a reference.
struct Results {
  PoisonedVector<float> out, lse, dq, dk, dv;

  Results(const AttentionPassReference& r, const Doubles& gradient, Queue& queue)
      : out(r.q.size()), lse(r.lse.size()), dq(r.q.size()), dk(r.k.size()), dv(r.k.size()) {
    const int64_t rows = r.cu_seqlens.back();
    Floats q = ToFloats(r.q), k = ToFloats(r.k), v = ToFloats(r.v), d_out = ToFloats(gradient);
    std::vector<int64_t> cu = r.cu_seqlens;
    const auto queries = [&](auto& x) { return Tensor(x.data(), {rows, r.heads, r.dim}); };
    const auto keys = [&](auto& x) { return Tensor(x.data(), {rows, r.kv_heads, r.dim}); };
    const Tensor offsets(cu.data(), {std::ssize(cu)}), sums(lse.data(), {rows, r.heads});
    AttentionPass(queue, {queries(q), keys(k), keys(v), offsets, queries(out), sums});
    AttentionBackward(queue, {queries(q), keys(k), keys(v), offsets, queries(out), sums,
                              queries(d_out), queries(dq), keys(dk), keys(dv)});
  }
};

TEST(AttentionBackwardTest, ReferenceAgreesWithFiniteDifferences) {
  AttentionPassReference r = MakeReference({"", {6, 1, 4}, 4, 2, 3});
  const Doubles d_out = RandomDoubles(9, std::ssize(r.q));
  r.Pass();
  r.Backward(d_out);
  const Doubles dq = r.dq, dk = r.dk, dv = r.dv;
  const auto loss = [&] {
    r.Pass();
    return Dot(r.out, d_out);
  };
  ExpectGradient(loss, r.q, dq);
  ExpectGradient(loss, r.k, dk);
  ExpectGradient(loss, r.v, dv);
}

// A second document's numbers are those of the document alone.
TEST(AttentionBackwardTest, PackedReferenceEqualsTheDocumentAlone) {
  AttentionPassReference packed = MakeReference({"", {6, 9}, 2, 1, 4});
  const Doubles d_out = RandomDoubles(9, std::ssize(packed.q));
  packed.Pass();
  packed.Backward(d_out);
  const auto tail = [](const Doubles& x, int64_t width) {
    return Doubles(x.begin() + 6 * width, x.end());
  };
  AttentionPassReference alone{.heads = 2,
                               .kv_heads = 1,
                               .dim = 4,
                               .q = tail(packed.q, 8),
                               .k = tail(packed.k, 4),
                               .v = tail(packed.v, 4),
                               .cu_seqlens = {0, 9}};
  alone.Pass();
  alone.Backward(tail(d_out, 8));
  EXPECT_LE(RelativeError(tail(packed.out, 8), alone.out), 1e-10);
  EXPECT_LE(RelativeError(tail(packed.dq, 8), alone.dq), 1e-10);
  EXPECT_LE(RelativeError(tail(packed.dk, 4), alone.dk), 1e-10);
  EXPECT_LE(RelativeError(tail(packed.dv, 4), alone.dv), 1e-10);
}

TEST(AttentionBackwardTest, FollowsTheReference) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    AttentionPassReference r = MakeReference(c);
    const Doubles d_out = ToDoubles(RandomFloats(9, std::ssize(r.q)));
    r.Pass();
    r.Backward(d_out);
    OnEverySimdTarget([&] {
      Queue queue(2);
      const Results got(r, d_out, queue);
      EXPECT_LE(RelativeError(got.out, r.out), 1e-6);
      ExpectAllNear(got.lse, r.lse, 1e-5);
      EXPECT_LE(RelativeError(got.dv, r.dv), 2e-6);
      if (r.cu_seqlens.back() == 1) return;  // a single key has no gradient but rounding
      EXPECT_LE(RelativeError(got.dq, r.dq), 2e-6);
      EXPECT_LE(RelativeError(got.dk, r.dk), 2e-6);
    });
  }
}

TEST(AttentionBackwardTest, ThreadsDoNotChangeBits) {
  AttentionPassReference r = MakeReference({"", {150, 70}, 4, 2, 16});
  const Doubles d_out = RandomDoubles(9, std::ssize(r.q));
  r.Pass();
  Queue one(1), three(3);
  const Results a(r, d_out, one), b(r, d_out, three);
  EXPECT_TRUE(SameBits(b.out, a.out));
  EXPECT_TRUE(SameBits(b.dq, a.dq));
  EXPECT_TRUE(SameBits(b.dk, a.dk));
  EXPECT_TRUE(SameBits(b.dv, a.dv));
}

}  // namespace
}  // namespace mm01
