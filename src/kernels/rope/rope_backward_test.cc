#include "kernels/rope/rope_backward.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/rope/rope.h"
#include "testing/arrays.h"
#include "testing/gradients.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

constexpr int64_t kRows = 9, kHeads = 2, kDim = 8, kRotary = 6, kSize = kRows * kHeads * kDim;

struct Table {
  std::vector<int64_t> position;
  Floats cos = Floats(kRows * kRotary / 2), sin = cos;

  explicit Table(Queue& queue) {
    for (int64_t i = 0; i < kRows; ++i) position.push_back(3 * i);
    RopeTable(queue, Tensor(position.data(), {kRows}), 100.0, Cos(), Sin());
  }
  Tensor Cos() { return Tensor(cos.data(), {kRows, kRotary / 2}); }
  Tensor Sin() { return Tensor(sin.data(), {kRows, kRotary / 2}); }
};

// Rope is linear, R x, so its gradient for d is R^T d, and (R x) . d = x . (R^T d) for every x.
TEST(RopeBackwardTest, IsTheTransposeOfRope) {
  Queue queue(2);
  Table table(queue);
  const Floats x = RandomFloats(1, kSize), d = RandomFloats(2, kSize);
  Floats turned = x, gradient = d;
  Rope(queue, Tensor(turned.data(), {kRows, kHeads, kDim}), table.Cos(), table.Sin());
  RopeBackward(queue, Tensor(gradient.data(), {kRows, kHeads, kDim}), table.Cos(), table.Sin());
  EXPECT_NEAR(Dot(ToDoubles(turned), ToDoubles(d)), Dot(ToDoubles(x), ToDoubles(gradient)), 1e-5);
  Rope(queue, Tensor(gradient.data(), {kRows, kHeads, kDim}), table.Cos(), table.Sin());
  EXPECT_LE(RelativeError(gradient, d), 1e-6);
}

// The formula of rope.h in double against finite differences.
TEST(RopeBackwardTest, FollowsFiniteDifferences) {
  Queue queue(1);
  Table table(queue);
  std::vector<double> x = ToDoubles(RandomFloats(1, kSize));
  const Floats d = RandomFloats(2, kSize);
  const auto loss = [&] {
    double sum = 0.0;
    for (int64_t i = 0; i < kSize; ++i) {
      const int64_t row = i / (kHeads * kDim), place = i % kDim;
      const auto at = [](const Floats& v, int64_t n) {
        return static_cast<double>(v[static_cast<size_t>(n)]);
      };
      double y = x[static_cast<size_t>(i)];
      if (place < kRotary) {
        const int64_t half = kRotary / 2, angle = row * half + place % half;
        const double other = x[static_cast<size_t>(place < half ? i + half : i - half)];
        y = y * at(table.cos, angle) + (place < half ? -other : other) * at(table.sin, angle);
      }
      sum += y * at(d, i);
    }
    return sum;
  };
  Floats gradient = d;
  RopeBackward(queue, Tensor(gradient.data(), {kRows, kHeads, kDim}), table.Cos(), table.Sin());
  ExpectGradient(loss, x, ToDoubles(gradient), 1e-6);
}

}  // namespace
}  // namespace mm01
