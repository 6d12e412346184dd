// Weights are what they were set to, and int8 is as near as its contract says.
#include "kernels/gemm/weight.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <span>
#include <vector>

#include "base/check.h"
#include "testing/arrays.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

Floats Row(const Weight& w, int64_t n) {
  Floats row(w.k());
  w.GetRow(n, row);
  return row;
}

TEST(WeightTest, AGroupIsQuantizedAsWorkedByHand) {
  // 127 / 127 = 1 is its own bf16; halves go to the even neighbour.
  const Floats x = {127, -127, 0.4f, 0.5f, 1.5f, -2.5f, 0};
  std::array<int8_t, 7> q;
  bf16 scale;
  QuantizeGroup(x, q, scale);
  EXPECT_EQ(ToFloat(scale), 1.0f);
  EXPECT_EQ(q, (std::array<int8_t, 7>{127, -127, 0, 0, 2, -2, 0}));
}

TEST(WeightTest, AGroupOfZerosHasScaleZero) {
  const Floats x(32, 0.0f);
  std::array<int8_t, 32> q;
  bf16 scale;
  QuantizeGroup(x, q, scale);
  EXPECT_EQ(ToFloat(scale), 0.0f);
  EXPECT_EQ(q, (std::array<int8_t, 32>{}));
}

TEST(WeightTest, AGroupThatIsNotFiniteSaysSoInItsScale) {
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    Floats x(32, 1.0f);
    x[5] = bad;
    std::array<int8_t, 32> q;
    bf16 scale;
    QuantizeGroup(x, q, scale);
    EXPECT_FALSE(std::isfinite(ToFloat(scale)));
    EXPECT_EQ(q, (std::array<int8_t, 32>{}));
  }
}

TEST(WeightTest, QuantizingIsOffByAtMostHalfAStep) {
  for (uint64_t stream = 0; stream < 200; ++stream) {
    Floats x = RandomFloats(stream, 32);
    const float size = std::exp2(static_cast<float>(stream % 40) - 20.0f);
    for (float& v : x) v *= size;
    std::array<int8_t, 32> q;
    bf16 scale;
    QuantizeGroup(x, q, scale);
    for (size_t i = 0; i < 32; ++i) {
      EXPECT_LE(std::abs(x[i] - static_cast<float>(q[i]) * ToFloat(scale)),
                0.5001f * ToFloat(scale));
    }
  }
}

TEST(WeightTest, Float32AndBF16RowsComeBackAsTheyWere) {
  for (const int64_t n : {1, 15, 16, 17, 40}) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      Weight w({type}, n, 37);
      for (int64_t i = n; i-- > 0;) w.SetRow(i, RandomBF16s(i, 37));
      for (int64_t i = 0; i < n; ++i) EXPECT_TRUE(SameBits(Row(w, i), RandomBF16s(i, 37)));
    }
  }
}

TEST(WeightTest, Int8RowsComeBackAsTheirNumbersTimesTheirScales) {
  constexpr int64_t kN = 19, kK = 70;  // groups of 32, 32 and 6
  Weight w({DType::kI8, 32}, kN, kK);
  const std::array<bf16, 3> scales = {ToBF16(0.5f), ToBF16(3.0f), ToBF16(0.0f)};
  std::vector<int8_t> q(kK);
  for (int64_t i = 0; i < kN; ++i) {
    for (int64_t k = 0; k < kK; ++k) q[k] = static_cast<int8_t>(7 * k + 31 * i);
    w.SetRow(i, q, scales);
  }
  for (int64_t i = 0; i < kN; ++i) {
    const Floats row = Row(w, i);
    for (int64_t k = 0; k < kK; ++k) {
      EXPECT_EQ(row[k],
                static_cast<float>(static_cast<int8_t>(7 * k + 31 * i)) * ToFloat(scales[k / 32]));
    }
  }
}

TEST(WeightTest, QuantizingOnTheWayInIsQuantizingGroupByGroup) {
  constexpr int64_t kK = 150;
  const Floats x = RandomFloats(5, kK);
  for (const int64_t group : {32, 64, 128}) {
    Weight w({DType::kI8, group}, 3, kK);
    w.SetRow(1, x);
    const Floats row = Row(w, 1);
    for (int64_t begin = 0; begin < kK; begin += group) {
      const int64_t count = std::min(group, kK - begin);
      std::array<int8_t, 128> q;
      bf16 scale;
      QuantizeGroup(std::span(x).subspan(begin, count), std::span(q).first(count), scale);
      for (int64_t i = 0; i < count; ++i) {
        EXPECT_EQ(row[begin + i], static_cast<float>(q[i]) * ToFloat(scale));
      }
    }
  }
}

TEST(WeightTest, BytesAreThoseOfTheCanonicalForm) {
  EXPECT_EQ(WeightBytes({}, 10, 70), 2800);
  EXPECT_EQ(WeightBytes({DType::kBF16}, 10, 70), 1400);
  EXPECT_EQ(WeightBytes({DType::kI8, 32}, 10, 70), 700 + 10 * 3 * 2);
}

TEST(WeightTest, WhatWasNotBuiltIsABug) {
  EXPECT_THROW(Weight({DType::kF16}, 2, 2), Bug);
  EXPECT_THROW(Weight({DType::kI8, 48}, 2, 2), Bug);
  EXPECT_THROW(Weight({DType::kI8}, 2, 2), Bug);
  EXPECT_THROW(Weight({DType::kF32, 32}, 2, 2), Bug);
  EXPECT_THROW(Weight({}, 0, 2), Bug);
  Weight w({}, 2, 3);
  EXPECT_THROW(w.SetRow(2, Floats(3)), Bug);
  EXPECT_THROW(w.SetRow(0, Floats(4)), Bug);
  EXPECT_THROW(w.SetRow(0, std::vector<int8_t>(3), std::vector<bf16>(1)), Bug);
  Floats row(2);
  EXPECT_THROW(w.GetRow(0, row), Bug);
}

}  // namespace
}  // namespace mm01
