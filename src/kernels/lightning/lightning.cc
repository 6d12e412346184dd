#include "kernels/lightning/lightning.h"

#include <cmath>

#include "base/check.h"

namespace mm01 {
namespace {

// 2^(-8 (h + 1) / n), written as the released code does: the first slope to the power of h + 1.
void AppendGeometric(int64_t n, int64_t first, int64_t step, int64_t count,
                     std::vector<double>& out) {
  const double start = std::exp2(-std::exp2(-(std::log2(static_cast<double>(n)) - 3.0)));
  for (int64_t i = 0; i < count; ++i) {
    out.push_back(std::pow(start, static_cast<double>(first + i * step + 1)));
  }
}

std::vector<double> BaseSlopes(SlopeRule rule, int64_t num_heads) {
  std::vector<double> slopes;
  if (rule == SlopeRule::kTransformers) {
    for (int64_t h = 0; h < num_heads; ++h) {
      slopes.push_back(
          std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(num_heads)));
    }
    return slopes;
  }
  int64_t power = 1;
  while (power * 2 <= num_heads) power *= 2;
  AppendGeometric(power, 0, 1, power, slopes);
  AppendGeometric(2 * power, 0, 2, num_heads - power, slopes);
  return slopes;
}

double LayerFactor(SlopeRule rule, int64_t layer, int64_t num_layers) {
  const double last = static_cast<double>(num_layers - 1);
  if (rule == SlopeRule::kTransformers) {
    return 1.0 - static_cast<double>(layer) / (last + 1e-5) + 1e-5;
  }
  if (num_layers <= 1) return 1.0 + 1e-5;
  return 1.0 - static_cast<double>(layer) / last + 1e-5;
}

}  // namespace

std::vector<float> LightningSlopes(SlopeRule rule, int64_t num_heads, int64_t layer,
                                   int64_t num_layers) {
  Check(num_heads > 0 && 0 <= layer && layer < num_layers, "no such head or layer");
  const double factor = LayerFactor(rule, layer, num_layers);
  std::vector<float> slopes;
  for (double s : BaseSlopes(rule, num_heads)) slopes.push_back(static_cast<float>(s * factor));
  return slopes;
}

}  // namespace mm01
