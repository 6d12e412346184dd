// What the kernels of attention in training share.
#pragma once

#include "kernels/attention/attention_cuda.cuh"

namespace mm01::cuda {

// Whole documents. The pass has neither gradients nor factors.
struct AttentionDocuments {
  Heads q, k, v, out, d_out, dq, dk, dv;
  float* lse;                 // [T, H]
  float *shift, *delta;       // [H, T]  lse log2(e), and the sum of d_out out: of the backward pass
  const int64_t* cu_seqlens;  // [N + 1]
  int documents, rows, heads, kv_heads, group, dim;
  float scale;  // 1 / sqrt(K)
};

// bf16, K = 64 or 128, rows at multiples of 16 bytes.
void AttentionPassHopper(Queue& queue, const AttentionDocuments& a);
void AttentionBackwardHopper(Queue& queue, const AttentionDocuments& a);
// Everything.
void AttentionPassGeneric(Queue& queue, const AttentionDocuments& a);
void AttentionBackwardGeneric(Queue& queue, const AttentionDocuments& a);

}  // namespace mm01::cuda
