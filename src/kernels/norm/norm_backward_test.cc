#include "kernels/norm/norm_backward.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/norm/norm_backward_ref.h"
#include "kernels/norm/norm_cases.h"
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
  const auto loss = [&] {
    const double carried =
        r.carried.empty() ? 0.0 : r.alpha * Dot(r.of_norm ? r.Pass() : r.x, r.carried);
    return Dot(r.Pass(), d_out) + carried;
  };
  ExpectGradient(loss, r.x, at.d_x);
  ExpectGradient(loss, r.weight, at.d_weight);
  if (!r.gate.empty()) ExpectGradient(loss, r.gate, at.d_gate);
}

TEST(NormBackwardTest, ReferenceAgreesWithFiniteDifferences) {
  ExpectFiniteDifferences({RandomDoubles(1, 7), {}, RandomDoubles(2, 7), 1e-5});
  ExpectFiniteDifferences({RandomDoubles(1, 7), RandomDoubles(3, 7), RandomDoubles(2, 7), 0.1});
  for (const bool of_norm : {false, true}) {
    ExpectFiniteDifferences(
        {RandomDoubles(1, 7), {}, RandomDoubles(2, 7), 1e-5, RandomDoubles(5, 7), 2.5, of_norm});
  }
}

struct Results {
  PoisonedVector<float> d_x, d_gate;
  Floats d_weight;

  Results(int64_t rows, int64_t width, NormKind kind, Queue& queue)
      : d_x(static_cast<size_t>(rows * width)),
        d_gate(static_cast<size_t>(rows * width)),
        d_weight(static_cast<size_t>(width), 1.0f) {
    Floats x = RandomFloats(1, rows * width), weight = RandomFloats(2, width);
    Floats gate = RandomFloats(3, rows * width), d_out = RandomFloats(4, rows * width);
    Floats carried = RandomFloats(5, rows * width);
    const auto matrix = [&](auto& m) { return Tensor(m.data(), {rows, width}); };
    const Tensor w(weight.data(), {width}), dw(d_weight.data(), {width});
    if (kind == NormKind::kGated) {
      GatedNormBackward(queue, {matrix(x), matrix(gate), w, 1e-6f, matrix(d_out), matrix(d_x),
                                matrix(d_gate), dw});
    } else {
      CarriedGradient residual{matrix(carried), kCarriedAlpha, kind == NormKind::kCarriesNorm};
      if (kind == NormKind::kPlain) residual.rows = {};
      NormBackward(queue, {matrix(x), w, 1e-5f, matrix(d_out), matrix(d_x), dw, residual});
    }
  }
};

TEST(NormBackwardTest, FollowsTheReferenceAndAddsToTheWeight) {
  for (const int64_t width : {1, 16, 50, 128}) {
    for (const NormKind kind : kNormKinds) {
      SCOPED_TRACE(testing::Message() << width << ", kind " << static_cast<int>(kind));
      constexpr int64_t kRows = 131;
      const NormGradients want(kind, kRows, RandomFloats(1, kRows * width), RandomFloats(2, width),
                               RandomFloats(3, kRows * width), RandomFloats(4, kRows * width),
                               RandomFloats(5, kRows * width));
      OnEverySimdTarget([&] {
        Queue queue(2);
        const Results got(kRows, width, kind, queue);
        if (width > 1) {  // a single number's norm has no slope but rounding
          EXPECT_LE(RelativeError(got.d_x, want.d_x), 1e-6);
        }
        EXPECT_LE(RelativeError(got.d_weight, want.d_weight), 1e-6);
        if (kind == NormKind::kGated) {
          EXPECT_LE(RelativeError(got.d_gate, want.d_gate), 1e-6);
        }
      });
    }
  }
}

TEST(NormBackwardTest, TheGradientMayTakeThePlaceOfWhatIsCarried) {
  constexpr int64_t kRows = 70, kWidth = 40;
  Queue queue(2);
  for (const NormKind kind : {NormKind::kCarriesNorm, NormKind::kCarriesInput}) {
    const Results want(kRows, kWidth, kind, queue);
    Floats x = RandomFloats(1, kRows * kWidth), weight = RandomFloats(2, kWidth);
    Floats d_out = RandomFloats(4, kRows * kWidth), carried = RandomFloats(5, kRows * kWidth);
    Floats d_weight(kWidth, 1.0f);
    const auto matrix = [&](Floats& m) { return Tensor(m.data(), {kRows, kWidth}); };
    NormBackward(queue, {matrix(x),
                         Tensor(weight.data(), {kWidth}),
                         1e-5f,
                         matrix(d_out),
                         matrix(carried),
                         Tensor(d_weight.data(), {kWidth}),
                         {matrix(carried), kCarriedAlpha, kind == NormKind::kCarriesNorm}});
    EXPECT_TRUE(SameBits(carried, want.d_x));
    EXPECT_TRUE(SameBits(d_weight, want.d_weight));
  }
}

TEST(NormBackwardTest, ThreadsDoNotChangeBits) {
  Queue one(1), three(3);
  for (const NormKind kind : {NormKind::kGated, NormKind::kCarriesNorm}) {
    const Results a(300, 40, kind, one), b(300, 40, kind, three);
    EXPECT_TRUE(SameBits(b.d_x, a.d_x));
    EXPECT_TRUE(SameBits(b.d_gate, a.d_gate));
    EXPECT_TRUE(SameBits(b.d_weight, a.d_weight));
  }
}

}  // namespace
}  // namespace mm01
