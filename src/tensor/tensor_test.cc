#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

namespace mm01 {
namespace {

float Round(float x) {
  return ToFloat(ToBF16(x));
}

TEST(DTypeTest, BF16RoundsToNearestAndTiesToEven) {
  // Between 1 and 2, bf16 steps by 2^-7.
  EXPECT_EQ(ToBF16(1.f).bits, 0x3f80);
  EXPECT_EQ(Round(1.f + 0x1p-8f), 1.f) << "halfway, to the even 1";
  EXPECT_EQ(Round(1.f + 0x1p-8f + 0x1p-20f), 1.f + 0x1p-7f) << "just above halfway";
  EXPECT_EQ(Round(1.f + 3 * 0x1p-8f), 1.f + 2 * 0x1p-7f) << "halfway, to the even 2 steps";
  EXPECT_EQ(Round(-1.f - 3 * 0x1p-8f), -1.f - 2 * 0x1p-7f);
  EXPECT_EQ(Round(2.f - 0x1p-10f), 2.f) << "into the next exponent";
}

TEST(DTypeTest, BF16KeepsInfinityNaNSignsAndSubnormals) {
  EXPECT_EQ(Round(HUGE_VALF), HUGE_VALF);
  EXPECT_EQ(Round(std::numeric_limits<float>::max()), HUGE_VALF) << "rounds up, out of range";
  EXPECT_TRUE(std::isnan(Round(std::numeric_limits<float>::quiet_NaN())));
  // A NaN whose only set bit is in the half that is cut off must not turn into infinity.
  EXPECT_TRUE(std::isnan(Round(std::bit_cast<float>(0x7f800001u))));
  EXPECT_TRUE(std::isnan(Round(std::bit_cast<float>(0xffffffffu))));
  EXPECT_TRUE(std::signbit(Round(-0.f)));
  EXPECT_EQ(Round(0x1p-133f), 0x1p-133f) << "the smallest subnormal";
}

TEST(DTypeTest, EveryBF16SurvivesTheWayThroughFloat) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const bf16 x{static_cast<uint16_t>(bits)};
    if (std::isnan(ToFloat(x))) continue;
    EXPECT_EQ(ToBF16(ToFloat(x)), x) << bits;
  }
}

TEST(DTypeTest, SizesAndNamesBelongToTheTypes) {
  EXPECT_EQ(SizeOf(kDTypeOf<float>), 4);
  EXPECT_EQ(SizeOf(kDTypeOf<const bf16>), 2);
  EXPECT_EQ(SizeOf(kDTypeOf<double>), 8);
  EXPECT_EQ(SizeOf(kDTypeOf<int8_t>), 1);
  EXPECT_EQ(SizeOf(kDTypeOf<int64_t>), 8);
  EXPECT_EQ(ToString(DType::kBF16), "bf16");
  EXPECT_EQ(ToString(DType::kF32), "float32");
}

TEST(TensorTest, IsContiguousWithTheLastDimFastest) {
  std::vector<float> x(24);
  std::iota(x.begin(), x.end(), 0.f);
  const Tensor t(x.data(), {2, 3, 4});
  EXPECT_EQ(t.rank, 3);
  EXPECT_EQ(t.size(), 24);
  EXPECT_EQ(t.dtype, DType::kF32);
  EXPECT_EQ(t.stride[0], 12);
  EXPECT_EQ(t.stride[1], 4);
  EXPECT_EQ(t.stride[2], 1);
  const auto v = t.As<float, 3>();
  EXPECT_EQ(v(1, 2, 3), 23.f);
  EXPECT_EQ(v(1, 0, 2), 14.f);
  v(0, 1, 0) = -1.f;
  EXPECT_EQ(x[4], -1.f);
}

TEST(TensorTest, ViewsOfAStridedWindow) {
  // Columns 2 and 3 of a 3 x 5 matrix, as a head of a fused projection.
  std::vector<int32_t> x(15);
  std::iota(x.begin(), x.end(), 0);
  Tensor t(x.data() + 2, {3, 2});
  t.stride[0] = 5;
  const auto v = t.As<const int32_t, 2>();
  EXPECT_EQ(v(0, 0), 2);
  EXPECT_EQ(v(2, 1), 13);
  EXPECT_EQ((t.Rows(1, 3).As<int32_t, 2>()(0, 0)), 7) << "rows keep the stride";
}

TEST(TensorTest, RowsAreAWindowOfTheFirstDim) {
  std::vector<bf16> x(12);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = ToBF16(static_cast<float>(i));
  const Tensor t(x.data(), {4, 3});
  const Tensor rows = t.Rows(1, 3);
  EXPECT_EQ(rows.dim(0), 2);
  EXPECT_EQ(rows.dim(1), 3);
  EXPECT_EQ(ToFloat(rows.As<bf16, 2>()(1, 2)), 8.f);
  EXPECT_EQ(t.Rows(4, 4).size(), 0);
  EXPECT_THROW(t.Rows(-1, 2), Bug);
  EXPECT_THROW(t.Rows(2, 1), Bug);
  EXPECT_THROW(t.Rows(0, 5), Bug);
  EXPECT_THROW(Tensor().Rows(0, 0), Bug);
}

TEST(TensorTest, AnotherTypeOrRankIsABugThatNamesBoth) {
  std::vector<float> x(4);
  Tensor t(x.data(), {2, 2});
  const auto message = [&](auto view) {
    try {
      view();
    } catch (const Bug& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const std::string type = message([&] { t.As<bf16, 2>(); });
  EXPECT_NE(type.find("float32, wanted bf16"), std::string::npos) << type;
  const std::string rank = message([&] { t.As<float, 3>(); });
  EXPECT_NE(rank.find("2 dims, wanted 3"), std::string::npos) << rank;
  t.stride[1] = 2;
  EXPECT_NE(message([&] { t.As<float, 2>(); }).find("contiguous"), std::string::npos);
  EXPECT_THROW(Tensor(x.data(), {1, 1, 1, 1, 1}), Bug);
}

TEST(TensorTest, EmptyMeansNoMemory) {
  EXPECT_TRUE(Tensor().empty());
  float x = 0;
  const Tensor none(&x, {0, 3});
  EXPECT_FALSE(none.empty());
  EXPECT_EQ(none.size(), 0);
}

}  // namespace
}  // namespace mm01
