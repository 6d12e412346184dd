// Softmax attention over a paged KV cache: causal, grouped queries.
//
//   o_t = sum over s <= t of softmax_s(scale q_t . k_s) v_s        scale = 1 / sqrt(K)
//
// Nothing of size T by T exists. Keys are taken in tiles of 256 from the cache's first, tiles are
// folded in order into a running maximum, sum and output, which start afresh every 4,096 keys;
// these partial results are merged in order too. So outputs do not depend on chunking, batch or
// threads, to the bit.
//
// Letters   N sequences, T rows of all of them, H query heads, G kv heads (H a multiple of G; query
//           head h reads kv head h / (H / G)), K = V = head dim (a multiple of 16), P pages,
//           B = kKvPage tokens a page.
// Cost      4 K flops a visible key and head; a decode step reads every page of its sequence once.
// Errors    Shapes that disagree are our own bug: Check throws.
#pragma once

#include <cstdint>

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

inline constexpr int64_t kKvPage = 64;  // the grid of the lightning state, so that borders coincide

// One layer's cache. Elements are float32 or bf16 and stand for themselves times the page's scale.
struct PagedKv {
  Tensor k;        // [P, G, K * B]  [B / 16][K][16] within a page
  Tensor v;        // [P, G, B * V]  [B][V] within a page
  Tensor k_scale;  // [P, G]         float32
  Tensor v_scale;  // [P, G]         float32
};

struct KvStoreArgs {
  Tensor k, v;         // [T, G, K]  float32, k with RoPE applied; may be strided
  Tensor cu_seqlens;   // [N + 1]    int64
  Tensor position;     // [N]        int64: position of each sequence's first row
  Tensor kv_start;     // [N]        int64: position of the cache's first key, 0 but for ranks
  Tensor block_table;  // [N, M]     int32: page of position p is block_table[n][(p - kv_start) / B]
  PagedKv kv;
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
