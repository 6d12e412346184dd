// Softmax attention in training: whole documents, causal within each, keys and values as the
// projections leave them.
//
//   P_ts = exp(q_t . k_s / sqrt(K) - lse_t),  s <= t in the same document
//   o_t  = sum over s of P_ts v_s             lse_t = log sum over s of exp(q_t . k_s / sqrt(K))
//
//   D_ts = P_ts (do_t . v_s - do_t . o_t)
//   dq_t = sum over s of D_ts k_s / sqrt(K)
//   dk_s = sum over t of D_ts q_t / sqrt(K)     dv_s = sum over t of P_ts do_t
//
// Query head h reads kv head h / (H / G), whose gradients are sums over its query heads.
//
// Letters   T rows of all documents, N documents, H heads, G kv heads (divides H), K = V = head dim
//           (a multiple of 16).
// Types     float32; cu_seqlens int64.
// Memory    tiles of 64 rows by 64 keys; nothing of the size of the square is kept. Beside its
//           arguments an op takes room for copies of q, k, v, d_out.
// Order     tiles are added in order from the document's start: bits depend on the document alone.
// Cost      4 K flops a pair of query and key and head forward, 14 K backward: scores are worked
//           once for dq and once for dk and dv, so that neither waits for the other.
// Errors    Shapes that disagree are our own bug: Check throws.
// Sources   FlashAttention-2, arXiv:2307.08691.
#pragma once

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

struct AttentionPassArgs {
  Tensor q;           // [T, H, K]  may be strided, as all rows here
  Tensor k, v;        // [T, G, K]
  Tensor cu_seqlens;  // [N + 1]
  Tensor out;         // [T, H, V]
  Tensor lse;         // [T, H]     contiguous
};

void AttentionPass(Queue& queue, const AttentionPassArgs& args);

struct AttentionBackwardArgs {
  Tensor q, k, v, cu_seqlens, out, lse;  // as in the pass
  Tensor d_out;                          // [T, H, V]
  Tensor dq;                             // [T, H, K]  overwritten; so are
  Tensor dk, dv;                         // [T, G, K]
};

void AttentionBackward(Queue& queue, const AttentionBackwardArgs& args);

}  // namespace mm01
