// The slopes of lightning.h, worked by hand from the formulas of the released code and of the port.
#include <gtest/gtest.h>

#include <vector>

#include "base/check.h"
#include "kernels/lightning/lightning.h"

namespace mm01 {
namespace {

constexpr SlopeRule kOriginal = SlopeRule::kOriginal, kPort = SlopeRule::kTransformers;

// The layer factor of layer 0 is 1.00001 by both rules.
void ExpectSlopes(SlopeRule rule, const std::vector<double>& base) {
  const auto slopes = LightningSlopes(rule, static_cast<int64_t>(base.size()), 0, 80);
  ASSERT_EQ(slopes.size(), base.size());
  for (size_t h = 0; h < base.size(); ++h) {
    EXPECT_NEAR(slopes[h], base[h] * 1.00001, 1.2e-7 * base[h]) << "head " << h;
  }
}

TEST(SlopesTest, SixtyFourHeadsAreThoseOfTheReleasedModel) {
  for (const SlopeRule rule : {kOriginal, kPort}) {
    const auto first = LightningSlopes(rule, 64, 0, 80);
    EXPECT_NEAR(first[0], 0.91701321, 1e-7);  // 2^(-1/8) 1.00001
    EXPECT_NEAR(first[0] / 1.00001, 0.9170040432, 1e-7);
    EXPECT_NEAR(first[1] / 1.00001, 0.8408964153, 1e-7);
    EXPECT_NEAR(first[31] / 1.00001, 0.0625, 1e-8);
    EXPECT_NEAR(first[63] / 1.00001, 0.00390625, 5e-10);
  }
}

TEST(SlopesTest, LaterLayersForgetMoreSlowly) {
  // 1 - i / 79 + 1e-5; layer 78 is the last lightning layer.
  EXPECT_NEAR(LightningSlopes(kOriginal, 64, 1, 80)[31] / 0.0625, 0.98735177, 1e-7);
  EXPECT_NEAR(LightningSlopes(kOriginal, 64, 40, 80)[31] / 0.0625, 0.49368089, 1e-7);
  EXPECT_NEAR(LightningSlopes(kOriginal, 64, 78, 80)[31] / 0.0625, 0.01266823, 1e-8);
  EXPECT_NEAR(LightningSlopes(kOriginal, 64, 78, 80)[63], 4.948527e-5, 1e-11);
  EXPECT_NEAR(LightningSlopes(kOriginal, 64, 79, 80)[31] / 0.0625, 1e-5, 1e-11);
}

TEST(SlopesTest, ThePortAddsALittleToTheNumberOfLayers) {
  // 1 - 78 / 79.00001 + 1e-5 is 1.2498e-7 above the original's.
  const double port = LightningSlopes(kPort, 64, 78, 80)[31] / 0.0625;
  const double original = LightningSlopes(kOriginal, 64, 78, 80)[31] / 0.0625;
  EXPECT_NEAR(port - original, 1.2498e-7, 4e-9);
}

TEST(SlopesTest, AModelOfOneLayerHasFactorOne) {
  EXPECT_NEAR(LightningSlopes(kOriginal, 8, 0, 1)[0], 0.5 * 1.00001, 1e-7);
  EXPECT_NEAR(LightningSlopes(kPort, 8, 0, 1)[0], 0.5 * 1.00001, 1e-7);
}

TEST(SlopesTest, NumbersOfHeadsThatAreNoPowerOfTwoFollowTheRule) {
  // Four heads by 2^-2, 2^-4, ..., then every other one of eight: 2^-1, 2^-3.
  ExpectSlopes(kOriginal, {0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125});
  // Eight heads by 2^-1, ..., 2^-8, then every other one of sixteen: 2^-0.5, 2^-1.5, ...
  ExpectSlopes(kOriginal, {0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625,
                           0.7071067812, 0.3535533906, 0.1767766953, 0.08838834765});
  // 2^(-4 (h + 1) / 3) and 2^(-2 (h + 1) / 3).
  ExpectSlopes(kPort,
               {0.3968502630, 0.1574901312, 0.0625, 0.02480314144, 0.009843133202, 0.00390625});
  ExpectSlopes(
      kPort, {0.6299605249, 0.3968502630, 0.25, 0.1574901312, 0.09921256575, 0.0625, 0.03937253281,
              0.02480314144, 0.015625, 0.009843133202, 0.006200785359, 0.00390625});
  ExpectSlopes(kOriginal, {0.00390625});
  ExpectSlopes(kPort, {0.00390625});
}

TEST(SlopesTest, LayersThatAreNotThereAreABug) {
  EXPECT_THROW(LightningSlopes(kOriginal, 4, 80, 80), Bug);
  EXPECT_THROW(LightningSlopes(kOriginal, 4, -1, 80), Bug);
  EXPECT_THROW(LightningSlopes(kPort, 0, 0, 80), Bug);
}

}  // namespace
}  // namespace mm01
