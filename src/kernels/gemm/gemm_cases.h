// The products that tests and benches walk.
#pragma once

#include <cstdint>

#include "kernels/gemm/weight.h"

namespace mm01 {

struct GemmCase {
  const char* name;
  int64_t m, n, k;
};

inline constexpr GemmCase kGemmCases[] = {
    {"one number", 1, 1, 1},
    {"a row, part of a panel", 1, 15, 64},
    {"a row, many panels", 1, 200, 300},
    {"two rows, one panel", 2, 16, 31},
    {"three rows, a panel and one", 3, 17, 33},
    {"four rows", 4, 80, 128},
    {"five rows, k one under a block", 5, 32, 255},
    {"a block of k", 12, 48, 256},
    {"k one over a block", 13, 33, 257},
    {"primes", 29, 101, 523},
    {"a tile of rows and one", 193, 31, 129},
    {"several tiles of columns", 25, 530, 70},
};

inline constexpr WeightType kWeightTypes[] = {
    {DType::kF32, 0}, {DType::kBF16, 0}, {DType::kI8, 32}, {DType::kI8, 64}, {DType::kI8, 128},
};

}  // namespace mm01
