// Lightning against the recurrence in double, and the bits that it promises.
#include "kernels/lightning/lightning.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <vector>

#include "kernels/lightning/lightning_cases.h"
#include "kernels/lightning/lightning_ref.h"
#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

constexpr int64_t kB = kLightningBlock;
using Floats = std::vector<float>;

// One layer's inputs for a document: q, k and v as a fused projection leaves them, [T, H, 3, K].
struct Document {
  int64_t heads, dim;
  Floats qkv;

  Document(uint64_t stream, int64_t rows, int64_t num_heads, int64_t head_dim)
      : heads(num_heads),
        dim(head_dim),
        qkv(RandomFloats(stream, rows * num_heads * 3 * head_dim)) {}

  int64_t width() const { return heads * 3 * dim; }
  int64_t rows() const { return static_cast<int64_t>(qkv.size()) / width(); }
  // q, k or v by itself, [T, H, K]
  Floats Part(int64_t which) const {
    Floats part;
    for (int64_t i = which; i < rows() * heads * 3; i += 3) {
      part.insert(part.end(), qkv.begin() + i * dim, qkv.begin() + (i + 1) * dim);
    }
    return part;
  }
};

// State slots full of NaN.
struct Slots {
  PoisonedVector<float> s, k_rows, v_rows;
  int64_t num, heads, dim;

  Slots(int64_t num_slots, int64_t num_heads, int64_t head_dim)
      : s(num_slots * num_heads * head_dim * head_dim),
        k_rows(num_slots * num_heads * head_dim * kB),
        v_rows(num_slots * num_heads * head_dim * kB),
        num(num_slots),
        heads(num_heads),
        dim(head_dim) {}

  LightningState Tensors() {
    return {Tensor(s.data(), {num, heads, dim, dim}), Tensor(k_rows.data(), {num, heads, dim * kB}),
            Tensor(v_rows.data(), {num, heads, kB * dim})};
  }
  bool IsUntouched(int64_t slot) const {
    const auto is_poison = [&](const PoisonedVector<float>& all) {
      const int64_t n = static_cast<int64_t>(all.size()) / num;
      const PoisonedVector<float> poison(n);
      return static_cast<bool>(SameBits(std::span(all.data() + slot * n, n), poison));
    };
    return is_poison(s) && is_poison(k_rows) && is_poison(v_rows);
  }
};

// Rows first .. first + count - 1 of a document, for the slot that has read those before.
struct Piece {
  const Document* document;
  int32_t slot;
  int64_t first, count;
};

Tensor PartOf(const Floats& qkv, const Document& d, int64_t which, int64_t rows) {
  Tensor t(qkv.data() + which * d.dim, {rows, d.heads, d.dim});
  t.stride = {d.width(), 3 * d.dim, 1};
  return t;
}

Floats Slopes(const Document& d, int64_t layer = 3) {
  return LightningSlopes(SlopeRule::kOriginal, d.heads, layer, 8);
}

// One call with all pieces: out [T, H, V].
Floats Step(Queue& queue, Slots& slots, const Floats& slope, const std::vector<Piece>& pieces) {
  const Document& d = *pieces[0].document;
  Floats qkv;
  std::vector<int64_t> cu = {0}, position;
  std::vector<int32_t> slot;
  for (const Piece& p : pieces) {
    const auto begin = p.document->qkv.begin() + p.first * d.width();
    qkv.insert(qkv.end(), begin, begin + p.count * d.width());
    cu.push_back(cu.back() + p.count);
    position.push_back(p.first);
    slot.push_back(p.slot);
  }
  const int64_t rows = cu.back(), num = static_cast<int64_t>(pieces.size());
  PoisonedVector<float> out(rows * d.heads * d.dim);
  Lightning(queue, {.q = PartOf(qkv, d, 0, rows),
                    .k = PartOf(qkv, d, 1, rows),
                    .v = PartOf(qkv, d, 2, rows),
                    .slope = Tensor(slope.data(), {std::ssize(slope)}),
                    .cu_seqlens = Tensor(cu.data(), {num + 1}),
                    .position = Tensor(position.data(), {num}),
                    .slot = Tensor(slot.data(), {num}),
                    .state = slots.Tensors(),
                    .out = Tensor(out.data(), {rows, d.heads, d.dim})});
  return {out.begin(), out.end()};
}

// The document from `first` on, alone, in chunks.
Floats Read(Queue& queue, Slots& slots, int32_t slot, const Document& d, int64_t chunk,
            int64_t first = 0) {
  const Floats slope = Slopes(d);
  Floats out;
  for (int64_t at = first; at < d.rows(); at += chunk) {
    const Floats part = Step(queue, slots, slope, {{&d, slot, at, std::min(chunk, d.rows() - at)}});
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

Floats Whole(Queue& queue, const Document& d) {
  Slots slots(1, d.heads, d.dim);
  return Read(queue, slots, 0, d, d.rows());
}

std::vector<double> Reference(const Document& d, const Floats& slope, std::vector<double>& state) {
  state.assign(d.heads * d.dim * d.dim, 0.0);
  return ReferenceLightning(d.Part(0), d.Part(1), d.Part(2), slope, d.dim, state);
}

TEST(LightningTest, HalvingWhatWasGivesTheSumsWorkedByHand) {
  // q = k = (1, 0, ...), v = 1, a state that halves: 1, 1.5, 1.75, 1.875, ... 2 - 2^-t.
  Document d(1, 70, 1, 16);
  for (int64_t i = 0; i < static_cast<int64_t>(d.qkv.size()); ++i) {
    d.qkv[i] = i % 48 >= 32 || i % 16 == 0 ? 1.0f : 0.0f;
  }
  Queue queue(1);
  Slots slots(1, 1, 16);
  const Floats out = Step(queue, slots, {std::log(2.0f)}, {{&d, 0, 0, 70}});
  for (int64_t t = 0; t < 70; ++t) {
    for (int64_t j = 0; j < 16; ++j) EXPECT_NEAR(out[t * 16 + j], 2.0 - std::exp2(-t), 1e-6);
  }
  EXPECT_NEAR(out[16], 1.5, 1e-7);
  EXPECT_NEAR(out[32], 1.75, 1e-7);
  EXPECT_NEAR(out[48], 1.875, 1e-7);
}

TEST(LightningTest, FollowsTheRecurrence) {
  Queue queue(2);
  for (const LightningCase& c : LightningCases()) {
    SCOPED_TRACE(c.name);
    std::vector<Document> documents;
    for (const int64_t n : c.lengths) documents.emplace_back(n, n, c.heads, c.dim);
    const Floats slope = Slopes(documents[0], c.layer);
    std::vector<Piece> pieces;
    std::vector<double> want, state;
    for (const Document& d : documents) {
      pieces.push_back({&d, static_cast<int32_t>(2 * pieces.size() + 1), 0, d.rows()});
      const std::vector<double> part = Reference(d, slope, state);
      want.insert(want.end(), part.begin(), part.end());
    }
    OnEverySimdTarget([&] {
      // Every other slot belongs to nobody.
      Slots slots(2 * pieces.size() + 1, c.heads, c.dim);
      EXPECT_LE(RelativeError(Step(queue, slots, slope, pieces), want), 1e-6);
      for (int64_t slot = 0; slot < slots.num; slot += 2) EXPECT_TRUE(slots.IsUntouched(slot));
    });
  }
}

TEST(LightningTest, ChunkingDoesNotChangeABit) {
  Queue queue(1);
  const Document d(2, 300, 2, 48);
  OnEverySimdTarget([&] {
    const Floats want = Whole(queue, d);
    for (const int64_t chunk : {1, 7, 63, 64, 65, 256}) {
      Slots slots(1, d.heads, d.dim);
      EXPECT_TRUE(SameBits(Read(queue, slots, 0, d, chunk), want)) << "chunks of " << chunk;
    }
  });
}

TEST(LightningTest, DecodeAfterPrefillGivesThePrefillOfTheWhole) {
  Queue queue(1);
  const Document d(3, 150, 3, 32);
  const Floats want = Whole(queue, d), slope = Slopes(d);
  for (const int64_t prompt : {1, 63, 64, 65, 100, 128}) {
    Slots slots(1, d.heads, d.dim);
    Floats out = Step(queue, slots, slope, {{&d, 0, 0, prompt}});
    const Floats rest = Read(queue, slots, 0, d, 1, prompt);
    out.insert(out.end(), rest.begin(), rest.end());
    EXPECT_TRUE(SameBits(out, want)) << "a prompt of " << prompt;
  }
}

TEST(LightningTest, TheNumberOfThreadsDoesNotChangeABit) {
  Queue one(1), two(2), three(3);
  const Document d(4, 200, 5, 32);
  const Floats want = Whole(one, d);
  EXPECT_TRUE(SameBits(Whole(two, d), want));
  EXPECT_TRUE(SameBits(Whole(three, d), want));
}

#if HWY_ARCH_X86
TEST(LightningTest, TheWidthOfAVectorDoesNotChangeABit) {
  Queue queue(1);
  const Document d(4, 150, 2, 48);
  std::vector<Floats> results;
  OnEverySimdTarget([&](int64_t target) {
    if (target == HWY_AVX2 || target == HWY_AVX3) results.push_back(Whole(queue, d));
  });
  for (const Floats& r : results) EXPECT_TRUE(SameBits(r, results.front()));
}
#endif

TEST(LightningTest, ASequenceHasTheSameBitsAloneAndInABatch) {
  Queue queue(2);
  const std::vector<int64_t> lengths = {90, 1, 200, 64, 0, 129};
  std::vector<Document> documents;
  for (const int64_t n : lengths) documents.emplace_back(10 + n, n, 2, 32);
  std::vector<Floats> want, got(lengths.size());
  for (const Document& d : documents) want.push_back(Whole(queue, d));

  // Steps of 1, 37 or 80 rows, each sequence at its own pace, the order turned round each time.
  Slots slots(8, 2, 32);
  const std::array<int64_t, 3> paces = {37, 1, 80};
  std::vector<int64_t> done(lengths.size(), 0);
  for (int64_t round = 0; done != lengths; ++round) {
    std::vector<Piece> pieces;
    std::vector<size_t> owner;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const size_t n = round % 2 ? lengths.size() - 1 - i : i;
      const int64_t count = std::min(paces[(n + round) % 3], lengths[n] - done[n]);
      pieces.push_back({&documents[n], static_cast<int32_t>(7 - n), done[n], count});
      owner.push_back(n);
      done[n] += count;
    }
    const Floats out = Step(queue, slots, Slopes(documents[0]), pieces);
    auto at = out.begin();
    for (size_t i = 0; i < pieces.size(); ++i) {
      Floats& mine = got[owner[i]];
      mine.insert(mine.end(), at, at + pieces[i].count * 2 * 32);
      at += pieces[i].count * 2 * 32;
    }
  }
  for (size_t n = 0; n < lengths.size(); ++n) EXPECT_TRUE(SameBits(got[n], want[n])) << n;
  EXPECT_TRUE(slots.IsUntouched(0));
  EXPECT_TRUE(slots.IsUntouched(1));
}

TEST(LightningTest, ASlotIsUsedAgainWithoutClearing) {
  Queue queue(1);
  const Document old(5, 100, 2, 16), d(6, 140, 2, 16);
  const Floats want = Whole(queue, d);
  Slots slots(1, 2, 16);
  Read(queue, slots, 0, old, 100);
  EXPECT_TRUE(SameBits(Read(queue, slots, 0, d, 9), want));
  std::fill(slots.s.begin(), slots.s.end(), kNaN);
  std::fill(slots.k_rows.begin(), slots.k_rows.end(), kNaN);
  std::fill(slots.v_rows.begin(), slots.v_rows.end(), kNaN);
  EXPECT_TRUE(SameBits(Read(queue, slots, 0, d, 9), want));
}

TEST(LightningTest, RowsSinceTheBorderCanBeTakenBack) {
  Queue queue(1);
  const Document d(7, 120, 2, 32), draft(8, 120, 2, 32);
  const Floats want = Whole(queue, d), slope = Slopes(d);
  Slots slots(1, 2, 32);
  Step(queue, slots, slope, {{&d, 0, 0, 70}});
  Step(queue, slots, slope, {{&draft, 0, 70, 20}});
  const Floats rest = Read(queue, slots, 0, d, 50, 70);
  EXPECT_TRUE(SameBits(rest, Floats(want.begin() + 70 * 2 * 32, want.end())));
}

TEST(LightningTest, StridesDoNotChangeABit) {
  Queue queue(1);
  const Document d(9, 77, 3, 16);
  const Floats q = d.Part(0), k = d.Part(1), v = d.Part(2), slope = Slopes(d);
  const std::array<int64_t, 2> cu = {0, 77};
  const int64_t position = 0;
  const int32_t slot = 0;
  Slots slots(1, 3, 16);
  // Rows of `out` are twice as wide as they need to be.
  PoisonedVector<float> out(77 * 3 * 32);
  Tensor strided(out.data(), {77, 3, 16});
  strided.stride = {96, 32, 1};
  Lightning(queue, {.q = Tensor(q.data(), {77, 3, 16}),
                    .k = Tensor(k.data(), {77, 3, 16}),
                    .v = Tensor(v.data(), {77, 3, 16}),
                    .slope = Tensor(slope.data(), {3}),
                    .cu_seqlens = Tensor(cu.data(), {2}),
                    .position = Tensor(&position, {1}),
                    .slot = Tensor(&slot, {1}),
                    .state = slots.Tensors(),
                    .out = strided});
  Floats got;
  for (int64_t i = 0; i < 77 * 3; ++i) {
    got.insert(got.end(), out.begin() + i * 32, out.begin() + i * 32 + 16);
  }
  EXPECT_TRUE(SameBits(got, Whole(queue, d)));
  EXPECT_EQ(out.NumUnwritten(), static_cast<size_t>(77 * 3 * 16));
}

TEST(LightningTest, WhatDoesNotFitIsABug) {
  Queue queue(1);
  const Document odd(1, 4, 2, 24), d(1, 4, 2, 16);
  Slots odd_slots(1, 2, 24), few_heads(1, 1, 16), wide(1, 2, 32), slots(1, 2, 16);
  const Floats slope = Slopes(d);
  EXPECT_THROW(Step(queue, odd_slots, slope, {{&odd, 0, 0, 4}}), Bug) << "head dim 24";
  EXPECT_THROW(Step(queue, few_heads, slope, {{&d, 0, 0, 4}}), Bug);
  EXPECT_THROW(Step(queue, wide, slope, {{&d, 0, 0, 4}}), Bug);
  EXPECT_THROW(Step(queue, slots, Floats(3, 0.1f), {{&d, 0, 0, 4}}), Bug);
  EXPECT_NO_THROW(Step(queue, slots, slope, {{&d, 0, 0, 4}}));
}

TEST(LightningTest, ScratchIsTakenOnce) {
  Queue queue(2);
  const Document d(1, 130, 2, 128);
  Whole(queue, d);
  const int64_t bytes = queue.scratch_bytes();
  for (int i = 0; i < 3; ++i) Whole(queue, d);
  EXPECT_EQ(queue.scratch_bytes(), bytes);
}

}  // namespace
}  // namespace mm01
