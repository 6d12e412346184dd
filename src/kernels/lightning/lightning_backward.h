// Lightning attention in training: a pass over whole documents and its gradients. The formula is
// that of lightning.h, in blocks of B = kLightningBlock tokens counted from each document's start.
// With r, c = 1 .. m the places in a block of m tokens, lambda = exp(-slope), S the state before
// the block, G the gradient of the state after it, and M_rc = lambda^(r-c) for r >= c, else 0:
//
//   O  = diag(lambda^r) Q S + [(Q K^T) * M] V
//   S' = lambda^m S + K^T diag(lambda^(m-r)) V
//
//   dQ = diag(lambda^r) dO S^T     + [(dO V^T) * M] K
//   dK = diag(lambda^(m-r)) V G^T  + [(dO V^T) * M]^T Q
//   dV = diag(lambda^(m-r)) K G    + [(Q K^T) * M]^T dO
//   dS = lambda^m G + Q^T diag(lambda^r) dO
//
// Where q = SiLU(pre_q) and so for k and v, and these are given, it is their gradients that leave:
//
//   d_pre_q = dQ * SiLU'(pre_q) in place of dQ, and so for dK and dV
//
// Slopes are fixed and have no gradient. State and gradient enter and leave, so a document may be
// cut at a border of its blocks: over calls, or over ranks.
//
// Letters   T rows of all documents, N documents, H heads, K = V = head dim (a multiple of 16).
// Types     float32; on a GPU rows may also be bf16, all of one type. cu_seqlens int64. Before
//           SiLU' dQ, dK and dV are float32: results of bf16 are rounded once.
// Order     an item is a head of a document, which walks its blocks in order: bits depend on the
//           document alone.
// Cost      forward as lightning.h; backward two sweeps over the blocks, 10 K V + 10 B K flops a
//           row and head; nothing of the forward pass is kept but q, k and v.
// Errors    Shapes that disagree are our own bug: Check throws.
// Sources   [LA2] Lightning Attention-2, arXiv:2401.04658.
#pragma once

#include "device/queue.h"
#include "kernels/lightning/lightning.h"
#include "tensor/tensor.h"

namespace mm01 {

// On a GPU long documents of few heads are cut into segments, which run side by side, and the
// states between them come from a pass of their own over k and v. Who has room for so many states,
// [H, K, V] in float32, may hand them from the forward pass to the one back. The bits are the same.
int64_t LightningBorders(Device device, DType type, int64_t rows, int64_t heads, int64_t dim);

struct LightningPassArgs {
  Tensor q, k, v;       // [T, H, K]     after SiLU; may be strided
  Tensor slope;         // [H]
  Tensor cu_seqlens;    // [N + 1]
  Tensor s_in;          // [N, H, K, V]  state before each document; may be empty: zero
  Tensor out;           // [T, H, V]
  Tensor s_out;         // [N, H, K, V]  state after it; may be empty: nobody reads it
  Tensor borders = {};  // states between segments; may be empty: nobody reads them
};

void LightningPass(Queue& queue, const LightningPassArgs& args);

struct LightningBackwardArgs {
  Tensor q, k, v, slope, cu_seqlens, s_in;    // as in the pass
  Tensor d_out;                               // [T, H, V]
  Tensor d_s_out;                             // [N, H, K, V]  may be empty: zero
  Tensor dq, dk, dv;                          // [T, H, K]     overwritten; may be strided
  Tensor d_s_in;                              // [N, H, K, V]  may be empty: nobody reads it
  Tensor pre_q = {}, pre_k = {}, pre_v = {};  // [T, H, K]     or all empty; may be strided
  Tensor borders = {};                        // of the pass over the same rows; may be empty
};

void LightningBackward(Queue& queue, const LightningBackwardArgs& args);

}  // namespace mm01
