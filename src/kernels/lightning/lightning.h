// Lightning attention: linear attention in which each head forgets at one fixed rate.
//
//   S_t = exp(-slope) S_{t-1} + k_t^T v_t          the state, [K, V]
//   o_t = q_t S_t                                  the output, [V]
//
// So a token counts itself in full, and a token n places back with exp(-slope n). There is no
// softmax, no RoPE and no 1/sqrt(K); q, k and v have been through SiLU before they get here.
//
// The same in blocks of B tokens, which is what runs, S being the state at the last border of the
// absolute grid 0, B, 2B, ... and r = 0 .. B-1 the place in the block:
//
//   o_r = exp(-slope (r+1)) q_r S + sum over c <= r of exp(-slope (r-c)) (q_r . k_c) v_c
//
// A state slot holds S at that border and the k and v rows since. A step of one token reads S and
// never writes it; dropping the newest rows is a truncation; and the order of every sum is a
// function of the absolute position alone. So outputs do not depend on chunking, batch or threads,
// to the bit.
//
// Letters   N sequences, T rows of all of them, H heads, K = V = head dim (a multiple of 16),
//           P slots, B = kLightningBlock.
// Units     slope is in nats a token, > 0. Everything is float32; on a GPU q, k, v, out and the
//           slot's rows may all be bf16, S stays float32.
// On a GPU  The slot's rows are plain: [P, H, B, K] and [P, H, B, V]. Two kernels: one for calls of
//           at most one row a sequence (max_rows 1), one for all others. Within each, bits depend
//           on nothing but the sequence; the two round differently (float32: 1e-6, bf16: the last
//           bit of o), so where prefill gives way to decode shows in the last bits. slope,
//           cu_seqlens, position and slot are read while kernels ahead in the queue may still run:
//           copies may write them, kernels may not.
// Padding   No tensor is padded. Calls of several rows work in whole blocks of the grid: a first or
//           last block counts as B rows, those that are not the sequence's as zeros, and nothing
//           is written for them.
// Cost      a row: 4 K V + 4 K (r+1) flops a head. A slot: (K V + 2 B K) floats a head.
// Errors    Shapes that disagree are our own bug: Check throws.
// Sources   [LA2] Lightning Attention-2, arXiv:2401.04658. [MM01] MiniMax-01, arXiv:2501.08313.
#pragma once

#include <cstdint>
#include <vector>

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

// 64 and not the 256 of the released code: the result is the same, rows since the border cost as
// much memory as S and not four times that (docs/decisions/0003-state-slot.md).
inline constexpr int64_t kLightningBlock = 64;

// The released code and its port in the transformers library differ in two places: slopes for a
// number of heads that is no power of two, and 1e-7 in the layer factor.
enum class SlopeRule { kOriginal, kTransformers };

// slope[head] of layer `layer` (0-based) of all `num_layers`, softmax layers counted too:
// 2^(-8 (head + 1) / num_heads) * (1 - layer / (num_layers - 1) + 1e-5) for a power of two.
std::vector<float> LightningSlopes(SlopeRule rule, int64_t num_heads, int64_t layer,
                                   int64_t num_layers);

struct LightningState {
  Tensor s;       // [P, H, K, V]  at the last border
  Tensor k_rows;  // [P, H, K * B] rows since, [B / 16][K][16]; on a GPU [B][K]
  Tensor v_rows;  // [P, H, B * V] rows since, [B][V]
};

struct LightningArgs {
  Tensor q, k, v;        // [T, H, K]  rows of all sequences end to end; may be strided alike
  Tensor slope;          // [H]        float32
  Tensor cu_seqlens;     // [N + 1]    int64: rows cu_seqlens[n] .. cu_seqlens[n+1]-1 are sequence n
  Tensor position;       // [N]        int64: tokens in the slot before this call
  Tensor slot;           // [N]        int32: rows of the state, none twice
  int64_t max_rows = 0;  // on a GPU: the most rows of one sequence; 0 if nobody knows
  // On a GPU: no kernel that may still run when the one ahead of this call in the queue has passed
  // its wait (kernels/cuda/overlap.cuh), nor that one itself, writes the slots. A row of each is
  // then read while that kernel ends. True right behind a Gemm.
  bool settled = false;
  LightningState state;
  Tensor out;  // [T, H, V]
};

// Any number of new tokens for each of N sequences: prefill and decode are the same call. A
// sequence that starts (position 0) needs no cleared slot: what is in it is not read.
void Lightning(Queue& queue, const LightningArgs& args);

// The state after `position` tokens, rows since the border included:  out[H, K, V].
void LightningFinalState(Queue& queue, const LightningState& state, int64_t slot, int64_t position,
                         const Tensor& slope, const Tensor& out);

// For ranks that split the sequence. Every rank runs Lightning from an empty slot, and adds what
// came before its first row when it knows it:  out_t += exp(-slope (t+1)) q_t S_in, t = 0 .. T-1 of
// one sequence. q, out: [T, H, K]; s_in: [H, K, V], float32.
void LightningAddIncoming(Queue& queue, const Tensor& q, const Tensor& slope, const Tensor& s_in,
                          const Tensor& out);

}  // namespace mm01
