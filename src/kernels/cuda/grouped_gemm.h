// Products of sorted rows with the matrices of their experts, on the tensor cores:
//
//   out[r, n] = sum over k of x[r, k] w[e, n, k]                  for the rows r of expert e
//   out[r, n] = SiLU(w[e, n] . x[r]) * (w_up[e, n] . x[r])        where there is a w_up
//   out[r, n] = sum over k of x[r, k] w[e, k, n]                  with `transposed`
//
// Letters   R rows, E experts, N outputs, K inputs, all of them known to the CPU. Which rows are
//           whose is read on the GPU.
// Types     x bf16; w bf16, or int8 with bf16 scales; sums in float32; out bf16 or float32.
//           An int8 weight times its scale is rounded to bf16, as a stored bf16 weight was.
// Order     k ascending in steps of 16, as the tensor cores add them. A row's bits do not depend
//           on the other rows.
// Limits    K and N multiples of 8, for int8 of 16; K of 64 with `transposed`, which takes bf16
//           weights and writes bf16; rows of x and out aligned to 16 bytes.
// Cost      2 R N K flops. docs/derivations/moe_cuda.md.
#pragma once

#include <cstdint>

#include "device/queue.h"
#include "tensor/dtype.h"

namespace mm01::cuda {

// `rows` rows from `first` on, all of one expert.
struct RowGroup {
  int32_t expert = 0;
  int32_t rows = 0;
  int64_t first = 0;
};

// More rows than this are cut into several groups: the rows that share a pass over an expert's
// weights fit in the L2 cache, 25 MB of the 50 at Text-01's width.
inline constexpr int64_t kMaxGroupRows = 2048;

struct GroupedGemmArgs {
  const void* x = nullptr;  // [R, K]; for int8 weights with columns in PairOrder
  int64_t x_stride = 0;     // elements from row to row
  int64_t num_rows = 0;
  // The rows of each expert, in device memory. None: all rows are those of expert 0.
  const RowGroup* groups = nullptr;
  const int32_t* num_groups = nullptr;

  const void* w = nullptr;       // [E, N, K], or [E, K, N] with `transposed`
  const void* w_up = nullptr;    // the same shape, or none
  const bf16* scales = nullptr;  // int8: [E, N, ceil(K / group)]
  const bf16* scales_up = nullptr;
  int64_t group = 0;  // 32, 64 or 128; 0: the weights are bf16
  int64_t num_experts = 1;
  // Rows of w from an expert's first to the next one's; 0: as many as it has. Of bf16 weights only,
  // with w_up a multiple of 8.
  int64_t expert_rows = 0;
  bool transposed = false;
  int64_t n = 0;
  int64_t k = 0;

  void* out = nullptr;  // [R, N]
  int64_t out_stride = 0;
  DType out_type = DType::kBF16;  // float32: without w_up and with bf16 weights only
  bool silu = false;              // of each output; without w_up
  bool pair_order = false;        // columns of out in PairOrder

  // With w_up of bf16 and without pair_order also the sums: those over w and, N columns further,
  // those over w_up, as bf16. `out` is then worked out from them as they were rounded.
  bf16* products = nullptr;  // [R, 2 N], or none
  int64_t products_stride = 0;

  // Without w_up, of bf16 weights to bf16: SiLU of the first columns of out as they were rounded.
  bf16* silu_out = nullptr;  // [R, silu_columns], or none
  int64_t silu_stride = 0;
  int64_t silu_columns = 0;  // a multiple of 8
};

// PairOrder: of every 16 columns the pairs (0 1) (2 3) ... (14 15) stand in the order
// 0 2 4 6 1 3 5 7. So a thread that takes four neighbouring int8 weights out of shared memory holds
// what the tensor cores expect of it.
inline constexpr int kPairOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

void GroupedGemm(Queue& queue, const GroupedGemmArgs& args);

}  // namespace mm01::cuda
