// The tiles of queries of a ragged batch, those with most keys first.
#pragma once

#include "kernels/attention/attention_cuda.cuh"

namespace mm01::cuda {

inline constexpr int kQueries = 128;  // rows of a tile
inline constexpr int kKeys = 128;     // of a tile of keys, two pages

// A tile of queries.
struct Tile {
  int row, rows;  // of T
  int seq;
  int position;   // of its first row, from kv_start
  int length;     // keys in the cache
  int key_tiles;  // 1 at least
};

inline constexpr int kBins = 256;

// Within an eighth of each other: same bin. More keys: smaller bin.
__device__ __forceinline__ int BinOf(int key_tiles) {
  const int log = 31 - __clz(key_tiles);
  const int eighth = log < 3 ? key_tiles << (3 - log) : key_tiles >> (log - 3);
  return kBins - 1 - (log * 8 + eighth % 8);
}

template <typename Fn>
__device__ __forceinline__ void ForEachTile(const Sequences& sequences, const Fn& fn) {
  for (int n = threadIdx.x / 32; n < sequences.count; n += blockDim.x / 32) {
    const Sequence s = sequences.Get(n);
    for (int r = threadIdx.x % 32 * kQueries; r < s.rows; r += 32 * kQueries) {
      const int rows = min(kQueries, s.rows - r);
      const int key_tiles = max(1, (s.Visible(r + rows - 1) + kKeys - 1) / kKeys);
      fn(Tile{s.row + r, rows, n, s.position + r, s.length, key_tiles});
    }
  }
}

// By one warp: counts become where each bin begins. Returns the sum of all.
__device__ __forceinline__ int PlaceBins(int* bins) {
  constexpr int kEach = kBins / 32;
  const int lane = threadIdx.x;
  int count[kEach], sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) sum += count[i] = bins[lane * kEach + i];
  int end = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, end, step);
    if (lane >= step) end += other;
  }
  int at = end - sum;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    bins[lane * kEach + i] = at;
    at += count[i];
  }
  return __shfl_sync(0xffffffffu, end, 31);
}

// One block. counters: the number of tiles, and the next item to be taken.
static __global__ void __launch_bounds__(1024)
    ListTiles(Sequences sequences, int num_blocks, Tile* tiles, int* counters) {
  __shared__ int place[kBins];
  for (int b = threadIdx.x; b < kBins; b += blockDim.x) place[b] = 0;
  __syncthreads();
  ForEachTile(sequences, [&](const Tile& t) { atomicAdd(&place[BinOf(t.key_tiles)], 1); });
  __syncthreads();
  if (threadIdx.x < 32) {
    const int total = PlaceBins(place);
    if (threadIdx.x == 0) {
      counters[0] = total;
      counters[1] = num_blocks;  // each block's first item is its own number
    }
  }
  __syncthreads();
  ForEachTile(sequences,
              [&](const Tile& t) { tiles[atomicAdd(&place[BinOf(t.key_tiles)], 1)] = t; });
}

// Item i of the list: kv heads outermost, then tiles, then the query heads of the kv head.
struct Item {
  int tile, head, kv_head;
  __device__ __forceinline__ Item(int i, int num_tiles, int group) {
    kv_head = i / (num_tiles * group);
    const int rest = i - kv_head * num_tiles * group;
    tile = rest / group;
    head = kv_head * group + rest % group;
  }
};

}  // namespace mm01::cuda
