// What ranks that split a sequence need: the state after any token, and adding one that came
// before.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "kernels/lightning/lightning.h"
#include "kernels/lightning/lightning_ref.h"
#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

constexpr int64_t kB = kLightningBlock, kHeads = 2, kDim = 32, kWidth = kHeads * kDim;
using Floats = std::vector<float>;

// One slot, and the rows of a layer.
struct Layer {
  Floats q, k, v, slope;
  PoisonedVector<float> s{kWidth * kDim}, k_rows{kWidth * kB}, v_rows{kWidth * kB};

  explicit Layer(int64_t rows)
      : q(RandomFloats(1, rows * kWidth)),
        k(RandomFloats(2, rows * kWidth)),
        v(RandomFloats(3, rows * kWidth)),
        slope(LightningSlopes(SlopeRule::kOriginal, kHeads, 6, 8)) {}

  LightningState State() {
    return {Tensor(s.data(), {1, kHeads, kDim, kDim}),
            Tensor(k_rows.data(), {1, kHeads, kDim * kB}),
            Tensor(v_rows.data(), {1, kHeads, kB * kDim})};
  }
  Tensor Slope() const { return Tensor(slope.data(), {kHeads}); }
  Tensor Q(int64_t begin, int64_t end) const {
    return Tensor(q.data() + begin * kWidth, {end - begin, kHeads, kDim});
  }

  // Rows begin .. end-1 into a slot that has read `position` tokens.
  PoisonedVector<float> Run(Queue& queue, int64_t begin, int64_t end, int64_t position) {
    const int64_t rows = end - begin;
    PoisonedVector<float> out(rows * kWidth);
    const std::array<int64_t, 2> cu = {0, rows};
    const int32_t slot = 0;
    const auto part = [&](const Floats& x) {
      return Tensor(x.data() + begin * kWidth, {rows, kHeads, kDim});
    };
    Lightning(queue, {.q = part(q),
                      .k = part(k),
                      .v = part(v),
                      .slope = Slope(),
                      .cu_seqlens = Tensor(cu.data(), {2}),
                      .position = Tensor(&position, {1}),
                      .slot = Tensor(&slot, {1}),
                      .state = State(),
                      .out = Tensor(out.data(), {rows, kHeads, kDim})});
    return out;
  }
  PoisonedVector<float> FinalState(Queue& queue, int64_t position) {
    PoisonedVector<float> out(kWidth * kDim);
    LightningFinalState(queue, State(), 0, position, Slope(),
                        Tensor(out.data(), {kHeads, kDim, kDim}));
    return out;
  }
  std::vector<double> Reference(int64_t rows, std::vector<double>& state) const {
    state.assign(kWidth * kDim, 0.0);
    const auto first = [&](const Floats& x) { return std::span(x).first(rows * kWidth); };
    return ReferenceLightning(first(q), first(k), first(v), slope, kDim, state);
  }
};

TEST(LightningStateTest, TheFinalStateFollowsTheRecurrence) {
  Queue queue(2);
  OnEverySimdTarget([&] {
    for (const int64_t rows : {1, 63, 64, 65, 127, 128, 131}) {
      Layer layer(rows);
      layer.Run(queue, 0, rows, 0);
      std::vector<double> want;
      layer.Reference(rows, want);
      EXPECT_LE(RelativeError(layer.FinalState(queue, rows), want), 1e-6) << rows << " rows";
    }
  });
}

TEST(LightningStateTest, TheFinalStateLeavesTheSlotAsItWas) {
  Queue queue(1);
  Layer layer(100);
  layer.Run(queue, 0, 100, 0);
  const Floats before(layer.s.begin(), layer.s.end());
  layer.FinalState(queue, 100);
  EXPECT_TRUE(SameBits(Floats(layer.s.begin(), layer.s.end()), before));
}

TEST(LightningStateTest, ASlotThatReadNothingIsZero) {
  Queue queue(1);
  Layer layer(1);
  for (const float x : layer.FinalState(queue, 0)) EXPECT_EQ(x, 0.0f);
}

TEST(LightningStateTest, TheFinalStateDoesNotDependOnChunking) {
  Queue queue(1);
  Layer whole(150), chunked(150);
  whole.Run(queue, 0, 150, 0);
  for (int64_t at = 0; at < 150; at += 7) {
    chunked.Run(queue, at, std::min<int64_t>(at + 7, 150), at);
  }
  EXPECT_TRUE(SameBits(chunked.FinalState(queue, 150), whole.FinalState(queue, 150)));
}

TEST(LightningStateTest, HalvesRunApartAndJoinedEqualTheWhole) {
  Queue queue(2);
  for (const int64_t border : {1, 64, 100, 128}) {
    constexpr int64_t kRows = 230;
    Layer first(kRows), second(kRows);
    first.Run(queue, 0, border, 0);
    const PoisonedVector<float> incoming = first.FinalState(queue, border);
    PoisonedVector<float> out = second.Run(queue, border, kRows, 0);
    LightningAddIncoming(queue, second.Q(border, kRows), second.Slope(),
                         Tensor(incoming.data(), {kHeads, kDim, kDim}),
                         Tensor(out.data(), {kRows - border, kHeads, kDim}));

    std::vector<double> state;
    std::vector<double> want = second.Reference(kRows, state);
    want.erase(want.begin(), want.begin() + border * kWidth);
    EXPECT_LE(RelativeError(out, want), 1e-6) << "cut at " << border;

    // The state after both is what the first gave, decayed, and the second's.
    const PoisonedVector<float> local = second.FinalState(queue, kRows - border);
    Floats joined(local.begin(), local.end());
    for (int64_t i = 0; i < kWidth * kDim; ++i) {
      const double slope = second.slope[i / (kDim * kDim)];
      joined[i] += static_cast<float>(std::exp(-slope * static_cast<double>(kRows - border)) *
                                      static_cast<double>(incoming[i]));
    }
    EXPECT_LE(RelativeError(joined, state), 1e-6) << "cut at " << border;
  }
}

TEST(LightningStateTest, AnIncomingStateOfZerosChangesNoBit) {
  Queue queue(1);
  Layer layer(90);
  PoisonedVector<float> out = layer.Run(queue, 0, 90, 0);
  const Floats before(out.begin(), out.end()), zeros(kWidth * kDim, 0.0f);
  LightningAddIncoming(queue, layer.Q(0, 90), layer.Slope(),
                       Tensor(zeros.data(), {kHeads, kDim, kDim}),
                       Tensor(out.data(), {90, kHeads, kDim}));
  EXPECT_TRUE(SameBits(Floats(out.begin(), out.end()), before));
}

TEST(LightningStateTest, ShapesThatDisagreeAreABug) {
  Queue queue(1);
  Layer layer(3);
  PoisonedVector<float> out = layer.Run(queue, 0, 3, 0), s = layer.FinalState(queue, 3);
  const auto add = [&](const Tensor& state, const Tensor& to) {
    LightningAddIncoming(queue, layer.Q(0, 3), layer.Slope(), state, to);
  };
  EXPECT_THROW(add(Tensor(s.data(), {1, kDim, kDim}), Tensor(out.data(), {3, kHeads, kDim})), Bug);
  EXPECT_THROW(add(Tensor(s.data(), {kHeads, kDim, kDim}), Tensor(out.data(), {2, kHeads, kDim})),
               Bug);
  EXPECT_THROW(LightningFinalState(queue, layer.State(), 0, 3, layer.Slope(),
                                   Tensor(s.data(), {1, kDim, kDim})),
               Bug);
}

}  // namespace
}  // namespace mm01
