#include "kernels/activation/activation_backward.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/activation/activation.h"
#include "kernels/activation/activation_backward_ref.h"
#include "testing/arrays.h"
#include "testing/gradients.h"
#include "testing/poison.h"
#include "testing/simd_targets.h"

namespace mm01 {
namespace {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

constexpr int64_t kRows = 37, kWidth = 45, kSize = kRows * kWidth;

template <typename V>
Tensor Matrix(V& x) {
  return Tensor(x.data(), {kRows, kWidth});
}

TEST(ActivationBackwardTest, ReferenceAgreesWithFiniteDifferences) {
  Doubles x = RandomDoubles(1, 2);  // gate, up
  const double dy = 0.7;
  const SwiGluGradients g = ReferenceSwiGluBackward(x[0], x[1], dy);
  ExpectGradient([&] { return dy * ReferenceSilu(x[0]) * x[1]; }, x, {g.d_gate, g.d_up});
}

TEST(ActivationBackwardTest, FollowsTheReference) {
  OnEverySimdTarget([] {
    Queue queue(2);
    Floats x = RandomFloats(1, kSize), up = RandomFloats(2, kSize), dy = RandomFloats(3, kSize);
    x[0] = 200.0f;  // far out, where exp has ended
    x[1] = -200.0f;
    PoisonedVector<float> d_x(kSize), d_gate(kSize), d_up(kSize), out(kSize), dots(kRows);
    SiluBackward(queue, {Matrix(x), Matrix(dy), Matrix(d_x)});
    SwiGluBackward(queue, {.gate = Matrix(x),
                           .up = Matrix(up),
                           .d_out = Matrix(dy),
                           .d_gate = Matrix(d_gate),
                           .d_up = Matrix(d_up),
                           .out = Matrix(out),
                           .dots = Tensor(dots.data(), {kRows})});
    Doubles want_x, want_gate, want_up, want_out, want_dots(kRows);
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t row = i / kWidth;
      const auto g = static_cast<double>(x[i]), u = static_cast<double>(up[i]);
      const auto d = static_cast<double>(dy[i]);
      const SwiGluGradients all = ReferenceSwiGluBackward(g, u, d);
      want_x.push_back(d * ReferenceSiluSlope(g));
      want_gate.push_back(all.d_gate);
      want_up.push_back(all.d_up);
      want_out.push_back(ReferenceSilu(g) * u);
      want_dots[row] += d * want_out.back();
    }
    EXPECT_LE(RelativeError(d_x, want_x), 1e-6);
    EXPECT_LE(RelativeError(d_gate, want_gate), 1e-6);
    EXPECT_LE(RelativeError(d_up, want_up), 1e-6);
    EXPECT_LE(RelativeError(out, want_out), 1e-6);
    EXPECT_LE(RelativeError(dots, want_dots), 1e-6);
  });
}

TEST(ActivationBackwardTest, ForwardHasTheBitsOfThePlaceOnes) {
  Queue queue(2);
  Floats x = RandomFloats(1, kSize), up = RandomFloats(2, kSize), silu(kSize), swiglu(kSize);
  SiluOf(queue, {Matrix(x), Matrix(silu)});
  SwiGluOf(queue, {Matrix(x), Matrix(up), Matrix(swiglu)});
  Floats a = x, b = x;
  Silu(queue, Matrix(a));
  SwiGlu(queue, Matrix(b), Matrix(up));
  EXPECT_TRUE(SameBits(silu, a));
  EXPECT_TRUE(SameBits(swiglu, b));
}

// The gradients may take d_out's place, and h and the dots may be left out.
TEST(ActivationBackwardTest, InPlaceAndGradientsAlone) {
  Queue queue(1);
  Floats gate = RandomFloats(1, kSize), up = RandomFloats(2, kSize), dy = RandomFloats(3, kSize);
  Floats d_gate(kSize), d_up(kSize), out(kSize), same = dy, other(kSize);
  SwiGluBackwardArgs a{.gate = Matrix(gate),
                       .up = Matrix(up),
                       .d_out = Matrix(dy),
                       .d_gate = Matrix(d_gate),
                       .d_up = Matrix(d_up),
                       .out = Matrix(out)};
  SwiGluBackward(queue, a);
  a.out = Tensor();
  a.d_out = a.d_gate = Matrix(same);
  a.d_up = Matrix(other);
  SwiGluBackward(queue, a);
  EXPECT_TRUE(SameBits(same, d_gate));
  EXPECT_TRUE(SameBits(other, d_up));
}

}  // namespace
}  // namespace mm01
