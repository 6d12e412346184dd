// The lengths and shapes that tests and benches walk.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/lightning/lightning.h"

namespace mm01 {

struct LightningCase {
  const char* name;
  std::vector<int64_t> lengths;  // of the sequences that are in one batch
  int64_t heads = 2;
  int64_t dim = 16;
  int64_t layer = 3;  // of 8: how fast the heads forget
};

inline std::vector<LightningCase> LightningCases() {
  constexpr int64_t kB = kLightningBlock;
  return {
      {.name = "one token", .lengths = {1}},
      {.name = "a block but one", .lengths = {kB - 1}},
      {.name = "a block", .lengths = {kB}},
      {.name = "a block and one", .lengths = {kB + 1}},
      {.name = "two blocks and one", .lengths = {2 * kB + 1}, .heads = 1, .dim = 48},
      {.name = "a prime, slow heads", .lengths = {257}, .heads = 3, .dim = 32, .layer = 7},
      {.name = "a ragged batch", .lengths = {5, 0, 130, 1, kB}, .dim = 32},
      {.name = "the released head", .lengths = {131}, .heads = 1, .dim = 128, .layer = 0},
  };
}

}  // namespace mm01
