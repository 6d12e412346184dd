// Products of a few rows, as fast as the weights come from memory.
//
//   bf16 x [M, K], w bf16 or int8 [N, K], M <= 128, K a multiple of 8, for int8 of 16, at most
//   kMostStreamInputs, rows of x at multiples of 16 bytes. Several products of one x go as one
//   launch.
//
// Order   k is cut into steps of 128, and chain c of 8 takes steps c, c + 8, ... in turn. Within a
//         step the tensor cores add 16 inputs at a time; int8 is added within its group from zero,
//         multiplied by the group's scale and added to the chain. Chains are added in order. int8
//         with at most kFewestRows rows has a kernel of its own: 16 chains, and other 16 inputs at
//         a time. Nothing else depends on M, so neither do a row's bits.
#pragma once

#include <cstdint>

#include "device/queue.h"
#include "tensor/dtype.h"

namespace mm01::cuda {

inline constexpr int kMostStreamProducts = 4;
inline constexpr int64_t kMostStreamInputs = 49152;

struct StreamProduct {
  const void* w;
  const bf16* scales;  // int8: [N][groups]
  void* out;
  int64_t ldo;
  int n;
  int first_tile;  // of all products' rows; the launch fills it in
  bool bf16_out;
  bool silu;
};

struct StreamArgs {
  const bf16* x;
  int64_t ldx;
  int m, k;
  int group;  // int8: 32, 64 or 128; bf16: 0
  int num_groups;
  int num_products;
  StreamProduct product[kMostStreamProducts];
};

void StreamGemm(Queue& queue, const StreamArgs& args);

// What StreamGemm calls for int8 and at most kFewestRows rows.
void StreamGemmInt8(Queue& queue, const StreamArgs& args);

}  // namespace mm01::cuda
