// The steps of a mixture of experts on a GPU. Nothing that the router decides is known to the CPU:
// which rows are whose stays in device memory, and launches are as large as they may have to be.
//
// Letters   T tokens, E <= 256 experts, k <= 8 experts a token, R = T k < 2^31 rows, D width, F
//           expert width.
#pragma once

#include <cstdint>

#include "device/queue.h"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/gemm/weight.h"
#include "kernels/moe/moe.h"
#include "tensor/tensor.h"

namespace mm01::cuda {

// Where every token goes. Rows are sorted by expert, those of an expert in the order of their
// tokens. All pointers are to device memory.
struct Routing {
  int64_t tokens = 0, k = 0, num_experts = 0;
  int32_t* expert = nullptr;  // [T, k]  ascending
  float* weight = nullptr;    // [T, k]  of that expert
  int32_t* row = nullptr;     // [T, k]  of that expert's result
  int32_t* token = nullptr;   // [R]     of each row
  RowGroup* groups = nullptr;
  int32_t* num_groups = nullptr;
  int32_t* block_rows =
      nullptr;  // [ceil(T / 256), E]  rows of each block of tokens, then the first

  int64_t num_rows() const { return tokens * k; }
  // Experts have at least a row each, and no more groups than their rows make.
  int64_t most_groups() const { return num_experts + num_rows() / kMaxGroupRows; }
};

Routing MakeRouting(Scratch& scratch, int64_t tokens, int64_t k, int64_t num_experts);

// logits = x router^T, sums in float32. `few`: in the order of decode, for bf16 x of D % 8 = 0. The
// order of prefill is that of LogitsSplit for such x, and that of LogitsMany for others.
void RouterLogits(Queue& queue, const Tensor& x, const Weight& router, const Tensor& logits,
                  bool few);

// Fills in `expert` and `weight` alone.
void ChooseExperts(Queue& queue, const Tensor& logits, const Routing& routing);

// Fills the routing in.
void RouteRows(Queue& queue, const Tensor& logits, const Routing& routing);

// out[row[t, i]] = x[t].  bf16; in PairOrder for int8 weights.
void SpreadRows(Queue& queue, const Tensor& x, const Routing& routing, bf16* out, bool pair_order);

// out[t] = sum over i, ascending, of weight[t, i] y[row[t, i]].  y [R, D]
void CombineRows(Queue& queue, const Tensor& y, const Routing& routing, const Tensor& out);

// The experts of a layer, one stack a matrix.
struct ExpertStack {
  const void *w1, *w2, *w3;
  const bf16 *scales1, *scales2, *scales3;
  WeightType type;
  int64_t width, inner;  // D, F
};

// What few rows take: weights pass by once, at the speed of memory. bf16 or int8 weights, D and F
// multiples of 256, for int8 of 512 and with up to kMostStreamScales groups.
//
//   h[r] = SiLU(w1 x[token[r]]) * (w3 x[token[r]])    bf16 [R, F]
//   y[r] = w2 h[r]                                    float32 [R, D]
//
// Order   k is cut into steps of 256 inputs, for int8 of 512, and each step into eight equal parts.
//         A chain takes one part of every step, 16 inputs at a time; of int8 weights a group's
//         inputs in the part are added from zero, times the scale. Chains are added in order.
inline constexpr int64_t kMostStreamScales = 1024;
void StreamUp(Queue& queue, const Tensor& x, const ExpertStack& experts, const Routing& routing,
              bf16* h);
void StreamDown(Queue& queue, const bf16* h, const ExpertStack& experts, const Routing& routing,
                float* y);

// The same for all types and shapes, with h in float32 and sums in blocks of 256 inputs.
void PlainUp(Queue& queue, const Tensor& x, const ExpertStack& experts, const Routing& routing,
             float* h);
void PlainDown(Queue& queue, const float* h, const ExpertStack& experts, const Routing& routing,
               float* y);

}  // namespace mm01::cuda
