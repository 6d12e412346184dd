// What is left of a head's memory after n tokens of a block.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/lightning/lightning.h"

namespace mm01 {

// exp(-slope n), n = 0 .. B.
struct Decay {
  std::array<float, kLightningBlock + 1> power;

  explicit Decay(float slope) {
    for (int64_t n = 0; n <= kLightningBlock; ++n) {
      power[static_cast<size_t>(n)] =
          static_cast<float>(std::exp(-static_cast<double>(slope) * static_cast<double>(n)));
    }
  }
  float operator[](int64_t n) const { return power[static_cast<size_t>(n)]; }
};

}  // namespace mm01
