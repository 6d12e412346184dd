// What the kernels of attention share.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "device/queue.h"
#include "kernels/attention/attention.h"

namespace mm01::cuda {

inline constexpr float kNoKey = -INFINITY;  // log of the sum of nothing
inline constexpr float kLog2E = 1.4426950408889634f;

// A tensor as kernels take it: rows of heads.
struct Heads {
  void* data = nullptr;
  int64_t row = 0, head = 0;  // strides, in elements
  bool is_bf16 = false;
};

__device__ __forceinline__ float Load(const void* data, bool is_bf16, int64_t at) {
  return is_bf16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at])
                 : static_cast<const float*>(data)[at];
}
__device__ __forceinline__ void Store(void* data, bool is_bf16, int64_t at, float x) {
  if (is_bf16) {
    static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16_rn(x);
  } else {
    static_cast<float*>(data)[at] = x;
  }
}

// One sequence, its positions counted from kv_start.
struct Sequence {
  int row, rows;  // of T: its first, and how many
  int position;   // of its first row; may be negative
  int length;     // keys in the cache

  // Keys that row `r` of it sees.
  __device__ __forceinline__ int Visible(int r) const {
    const int keys = position + r + 1;
    return keys < 0 ? 0 : keys < length ? keys : length;
  }
};

// All of them, in device memory. Whole documents, whose keys are those of their rows, have neither
// positions nor lengths: null.
struct Sequences {
  const int64_t* cu_seqlens;
  const int64_t* position;
  const int64_t* kv_start;
  const int64_t* kv_length;
  const int32_t* block_table;
  int64_t table_stride;
  int count;

  __device__ __forceinline__ Sequence Get(int n) const {
    constexpr int64_t kFar = 1 << 30;
    const int64_t row = cu_seqlens[n], at = position ? position[n] - kv_start[n] : 0;
    return {.row = static_cast<int>(row),
            .rows = static_cast<int>(cu_seqlens[n + 1] - row),
            .position = static_cast<int>(at < -kFar  ? -kFar
                                         : at > kFar ? kFar
                                                     : at),
            .length = static_cast<int>(kv_length ? kv_length[n] : cu_seqlens[n + 1] - row)};
  }
};

struct AttentionProblem {
  Heads q, out;
  float* lse;  // [T, H] or null
  int64_t lse_row;
  PagedKv kv;
  Sequences sequences;
  int num_rows, heads, kv_heads, group, dim, num_pages;
  int64_t max_rows;     // of a sequence
  int64_t table_width;  // pages of a sequence, at most

  float scale() const;  // 1 / sqrt(K)
};

// bf16, K = 64 or 128, H / G up to 16 for decode, no scales.
void PrefillAttention(Queue& queue, const AttentionProblem& p);
void DecodeAttention(Queue& queue, const AttentionProblem& p);
// Everything.
void PlainAttention(Queue& queue, const AttentionProblem& p);

}  // namespace mm01::cuda
