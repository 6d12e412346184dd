// Softmax attention over a paged KV cache: causal, grouped queries.
//
//   o_t = sum over s <= t of softmax_s(scale q_t . k_s) v_s        scale = 1 / sqrt(K)
//
// Nothing of size T by T exists. Keys are taken in tiles of 256 from the cache's first, tiles are
// folded in order into a running maximum, sum and output, which start afresh every 1,024 keys;
// these partial results are merged in order too. So outputs do not depend on chunking, batch or
// threads, to the bit.
//
// Letters   N sequences, T rows of all of them, H query heads, G kv heads (H a multiple of G; query
//           head h reads kv head h / (H / G)), K = V = head dim (a multiple of 16), P pages,
//           B = kKvPage tokens a page.
// Cost      4 K flops a visible key and head; a decode step reads every page of its sequence once.
// Errors    Shapes that disagree are our own bug: Check throws.
//
// On a GPU q, k, v and out are float32 or bf16, all of one type, pages are plain rows and have no
// scales, and max_rows says which path the whole call takes, so that one long sequence takes
// decoding ones along:
//
//   prefill   max_rows above kDecodeRows. Keys in tiles of 128 from the cache's first, folded in
//             order; weights rounded to bf16: a row is off by 2.2e-3, of which rounding the output
//             is 1.65e-3
//   decode    keys in splits of 512 up to key 16,384 and of 1,024 after it, merged in order; holds
//             H (K + 2) floats a row and split, for which the pages of all sequences together are
//             taken to be no more than the pool's; weights in two bf16 terms
//
// A row has the same bits in every chunking and batch that takes the same path; paths differ in the
// last bits. Fast are bf16 with K = 64 or 128 and 16-byte aligned rows, decode for H / G up to 16;
// everything else, scales and K up to 768, runs by a plain kernel with float32 sums. T and the
// tokens of a sequence stay below 2^30, N below 65,536.
#pragma once

#include <cstdint>

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

inline constexpr int64_t kKvPage = 64;  // the grid of the lightning state, so that borders coincide
inline constexpr int64_t kDecodeRows = 4;  // on a GPU: of a sequence, at most, to be decoded

// One layer's cache. Elements are float32 or bf16 and stand for themselves times the page's scale.
struct PagedKv {
  Tensor k;        // [P, G, K * B]  [B / 16][K][16] within a page; [B][K] on a GPU
  Tensor v;        // [P, G, B * V]  [B][V] within a page
  Tensor k_scale;  // [P, G]         float32; empty, of a GPU's cache: 1
  Tensor v_scale;  // [P, G]         float32; empty, of a GPU's cache: 1
};

struct KvStoreArgs {
  Tensor k, v;         // [T, G, K]  float32, k with RoPE applied or yet to be; may be strided
  Tensor cu_seqlens;   // [N + 1]    int64
  Tensor position;     // [N]        int64: position of each sequence's first row
  Tensor kv_start;     // [N]        int64: position of the cache's first key, 0 but for ranks
  Tensor block_table;  // [N, M]     int32: page of position p is block_table[n][(p - kv_start) / B]
  int64_t max_rows = 0;  // most rows of one sequence, where the tensors are on a GPU
  PagedKv kv;

  // Empty, or rotary positions to be applied on the way (rope.h): to k as it is written, to q in
  // place. Of the rows of k nothing is promised afterwards.
  Tensor q = {};    // [T, H, K]     may be empty, may be strided
  Tensor cos = {};  // [T, R / 2]    float32
  Tensor sin = {};  // [T, R / 2]    float32
};

// Writes rows into their pages, dividing by the page's scale and rounding to the cache's element
// type.
void KvStore(Queue& queue, const KvStoreArgs& args);

struct AttentionArgs {
  Tensor q;            // [T, H, K]  float32 with RoPE applied; may be strided
  Tensor cu_seqlens;   // [N + 1]    int64
  Tensor position;     // [N]        int64: position of each sequence's first row
  Tensor kv_start;     // [N]        int64: position of the cache's first key, 0 but for ranks. Rows
                       //            before it see nothing: out 0, lse -inf
  Tensor kv_length;    // [N]        int64: keys in the cache from kv_start on
  Tensor block_table;  // [N, M]     int32: page of position p is block_table[n][(p - kv_start) / B]
  int64_t max_rows = 0;  // most rows of one sequence, where the tensors are on a GPU
  PagedKv kv;
  Tensor out;  // [T, H, V]  float32
  Tensor lse;  // [T, H]     float32: log of the sum of exp(scale q.k); may be empty
};

void Attention(Queue& queue, const AttentionArgs& args);

// Folds the result (out, lse) of some keys into that of others: the two become what all keys
// together give. out, other: [T, H, V]; lse, other_lse: [T, H].
void MergeAttention(Queue& queue, const Tensor& out, const Tensor& lse, const Tensor& other,
                    const Tensor& other_lse);

}  // namespace mm01
