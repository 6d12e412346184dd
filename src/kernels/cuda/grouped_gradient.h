// Gradients of the matrices of experts whose rows follow each other, on the tensor cores:
//
//   c_e[m, n] += sum over the rows r of expert e of  a[r, m] b[r, n]
//
// Letters   R rows, E experts, M x N numbers of each expert's matrix.
// Types     a and b bf16, sums and c float32.
// Order     Experts' rows come in chunks of 64. The chunks of c_0, those of c_1 and so on make a
// line
//           that is cut into as many runs as there are multiprocessors for each tile. What a run
//           has of an expert is one chain over its rows, and is added to c after what the runs
//           before it have.
// Limits    E of 64; M and N multiples of 8; rows of a, b and c at multiples of 16 bytes.
// Cost      2 R M N flops. For matrices of few tiles, that leave multiprocessors idle one by one:
//           room for 128 KB a multiprocessor and for as much each tile of each expert.
#pragma once

#include <cstdint>
#include <vector>

#include "device/queue.h"

namespace mm01::cuda {

inline constexpr int64_t kMaxGradientExperts = 64;

struct GroupedGradientArgs {
  const void* a = nullptr;  // [R, M]
  int64_t a_stride = 0;     // elements from row to row
  const void* b = nullptr;  // [R, N]
  int64_t b_stride = 0;
  int64_t m = 0;
  int64_t n = 0;
  std::vector<int64_t> offset;  // [E + 1]  rows offset[e] .. offset[e+1]-1 are expert e's; from 0
  std::vector<float*> c;        // [E]
  int64_t c_stride = 0;
};

// Tiles that a matrix of M x N is worked in.
int64_t GradientTiles(int64_t m, int64_t n);

void GroupedGradient(Queue& queue, const GroupedGradientArgs& args);

}  // namespace mm01::cuda
