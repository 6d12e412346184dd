#include "kernels/norm/norm_backward.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/norm/norm_backward_ref.h"
#include "testing/arrays.h"
#include "testing/gradients.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

void ExpectFiniteDifferences(GatedNormReference r) {
  const Doubles d_out = RandomDoubles(4, std::ssize(r.x));
  r.Backward(d_out);
  const GatedNormReference at = r;
  const auto loss = [&] { return Dot(r.Pass(), d_out); };
  ExpectGradient(loss, r.x, at.d_x);
  ExpectGradient(loss, r.weight, at.d_weight);
  if (!r.gate.empty()) ExpectGradient(loss, r.gate, at.d_gate);
}

TEST(NormBackwardTest, ReferenceAgreesWithFiniteDifferences) {
  ExpectFiniteDifferences({RandomDoubles(1, 7), {}, RandomDoubles(2, 7), 1e-5});
  ExpectFiniteDifferences({RandomDoubles(1, 7), RandomDoubles(3, 7), RandomDoubles(2, 7), 0.1});
}

struct Results {
  PoisonedVector<float> d_x, d_gate;
  Floats d_weight;

  Results(int64_t rows, int64_t width, bool gated, Queue& queue)
      : d_x(static_cast<size_t>(rows * width)),
        d_gate(static_cast<size_t>(rows * width)),
        d_weight(static_cast<size_t>(width), 1.0f) {
    Floats x = RandomFloats(1, rows * width), weight = RandomFloats(2, width);
    Floats gate = RandomFloats(3, rows * width), d_out = RandomFloats(4, rows * width);
    const auto matrix = [&](auto& m) { return Tensor(m.data(), {rows, width}); };
    const Tensor w(weight.data(), {width}), dw(d_weight.data(), {width});
    if (gated) {
      GatedNormBackward(queue, {matrix(x), matrix(gate), w, 1e-6f, matrix(d_out), matrix(d_x),
                                matrix(d_gate), dw});
    } else {
      NormBackward(queue, {matrix(x), w, 1e-5f, matrix(d_out), matrix(d_x), dw});
    }
  }
};

TEST(NormBackwardTest, FollowsTheReferenceAndAddsToTheWeight) {
  for (const int64_t width : {1, 16, 50, 128}) {
    for (const bool gated : {false, true}) {
      SCOPED_TRACE(width);
      constexpr int64_t kRows = 131;
      const Doubles x = ToDoubles(RandomFloats(1, kRows * width));
      const Doubles weight = ToDoubles(RandomFloats(2, width));
      const Doubles gate = ToDoubles(RandomFloats(3, kRows * width));
      const Doubles d_out = ToDoubles(RandomFloats(4, kRows * width));
      Doubles d_x, d_gate, d_weight(static_cast<size_t>(width), 1.0);
      for (int64_t t = 0; t < kRows; ++t) {
        const auto row = [&](const Doubles& m) {
          return Doubles(m.begin() + t * width, m.begin() + (t + 1) * width);
        };
        GatedNormReference r{row(x), gated ? row(gate) : Doubles(), weight, gated ? 1e-6 : 1e-5};
        r.Backward(row(d_out));
        d_x.insert(d_x.end(), r.d_x.begin(), r.d_x.end());
        d_gate.insert(d_gate.end(), r.d_gate.begin(), r.d_gate.end());
        for (size_t i = 0; i < d_weight.size(); ++i) d_weight[i] += r.d_weight[i];
      }
      OnEverySimdTarget([&] {
        Queue queue(2);
        const Results got(kRows, width, gated, queue);
        if (width > 1) {  // a single number's norm has no slope but rounding
          EXPECT_LE(RelativeError(got.d_x, d_x), 1e-6);
        }
        EXPECT_LE(RelativeError(got.d_weight, d_weight), 1e-6);
        if (gated) {
          EXPECT_LE(RelativeError(got.d_gate, d_gate), 1e-6);
        }
      });
    }
  }
}

TEST(NormBackwardTest, ThreadsDoNotChangeBits) {
  Queue one(1), three(3);
  const Results a(300, 40, true, one), b(300, 40, true, three);
  EXPECT_TRUE(SameBits(b.d_x, a.d_x));
  EXPECT_TRUE(SameBits(b.d_gate, a.d_gate));
  EXPECT_TRUE(SameBits(b.d_weight, a.d_weight));
}

}  // namespace
}  // namespace mm01
