// Prefill: softmax(Q K^T) V on the tensor cores, scores never leaving the registers.
//
// A block takes one query head's tile of 128 rows at a time and walks the keys in tiles of 128 (two
// pages) from the cache's first. One warp copies: queries, keys and values, three tiles ahead. Two
// warpgroups of 64 rows each multiply; while one does the exponentials of its tile, the other has
// the tensor cores, and each starts the scores of tile t before the values of tile t - 1 are added.
//
// A small kernel first lists the tiles of the ragged batch, those with most keys first; blocks take
// (kv head, tile, query head) from that list as they get free, so that the query heads that read
// the same pages run side by side. Who takes what changes no bit: a row meets the same key tiles
// whatever the tile of queries it is in, and one that it does not see at all leaves its sums as
// they are (factor 1, weights 0).
#include <algorithm>

#include "kernels/attention/attention_hopper.cuh"
#include "kernels/attention/prefill_tiles.cuh"

namespace mm01::cuda {
namespace {

constexpr int kStages = 3;              // tiles of keys, and of values, in shared memory
constexpr int kGroupRows = 64;          // of a warpgroup
constexpr int kThreads = 3 * 128;       // a warpgroup that copies, two that multiply
constexpr int kColumnTile = 128 * 128;  // bytes of 128 rows of 64 columns, as wgmma reads them

struct Params {
  CUtensorMap q, k, v;
  const Tile* tiles;
  int* counters;  // [0] number of tiles, [1] the next item to be taken
  const int32_t* block_table;
  int64_t table_stride;
  Heads out;
  float* lse;
  int64_t lse_row;
  float scale;  // of the scores, times log2(e)
  float lse_scale;
  int heads, group, num_pages;
};

// What the copying warp tells the others with each tile of queries.
struct Work {
  int row, rows;  // rows 0: no more
  int head, position, length, key_tiles;
};

template <int kDim>
struct Shared {
  static constexpr int kTileBytes = 128 * kDim * 2;
  unsigned char q[kTileBytes];
  unsigned char k[kStages][kTileBytes];
  unsigned char v[kStages][kTileBytes];
  uint64_t q_full, q_empty;
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  uint64_t v_copied;  // a tile of values whose end is yet to be cleared
  Work work;
};

// The pages of a sequence, 32 at a time in the lanes of the warp and 32 ahead.
struct Pages {
  const int32_t* table;
  int count, missing, now, ahead;

  __device__ __forceinline__ Pages(const Params& p, const Tile& t) {
    table = p.block_table + t.seq * p.table_stride;
    count = (min(t.length, t.key_tiles * kKeys) + static_cast<int>(kKvPage) - 1) / kKvPage;
    missing = p.num_pages;  // beyond the pool: reads as zero
    now = Read(0);
    ahead = Read(32);
  }
  __device__ __forceinline__ int Read(int first) const {
    const int i = first + threadIdx.x % 32;
    return i < count ? table[i] : missing;
  }
  // Called with i = 0, 1, 2, ... in order.
  __device__ __forceinline__ int Get(int i) {
    if (i > 0 && i % 32 == 0) {
      now = ahead;
      ahead = Read(i + 32);
    }
    return __shfl_sync(kAllLanes, now, i % 32);
  }
};

template <int kDim>
__device__ __forceinline__ void CopyPages(const CUtensorMap* map, uint64_t* full,
                                          unsigned char* stage, int kv_head, int2 pages) {
  if (threadIdx.x % 32 != 0) return;
  BarrierExpect(full, Shared<kDim>::kTileBytes);
#pragma unroll
  for (int c = 0; c < kDim / 64; ++c) {
    unsigned char* to = stage + c * kColumnTile;
    TmaLoad(to, map, full, 64 * c, 0, kv_head, pages.x);
    TmaLoad(to + kPagePart, map, full, 64 * c, 0, kv_head, pages.y);
  }
}

// The last tile of values, of which `valid` rows are keys and the rest, which weights of zero do
// not make harmless, may be anything.
template <int kDim>
__device__ __forceinline__ void CopyAndClear(const Params& p, Shared<kDim>& s, int stage,
                                             uint32_t phase, int kv_head, int2 pages, int valid) {
  CopyPages<kDim>(&p.v, &s.v_copied, s.v[stage], kv_head, pages);
  BarrierWait(&s.v_copied, phase);
  for (int c = 0; c < kDim / 64; ++c) {
    for (int at = valid * 128 + threadIdx.x % 32 * 16; at < kColumnTile; at += 32 * 16) {
      *reinterpret_cast<uint4*>(s.v[stage] + c * kColumnTile + at) = make_uint4(0, 0, 0, 0);
    }
  }
  ProxyFence();
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(&s.v_full[stage]);
}

template <int kDim>
__device__ __forceinline__ void CopyQueries(const Params& p, Shared<kDim>& s, const Tile& t,
                                            int head) {
  if (threadIdx.x % 32 != 0) return;
  s.work = {t.row, t.rows, head, t.position, t.length, t.key_tiles};
  BarrierExpect(&s.q_full, Shared<kDim>::kTileBytes);
#pragma unroll
  for (int c = 0; c < kDim / 64; ++c) {
    TmaLoad(s.q + c * kColumnTile, &p.q, &s.q_full, 64 * c, head, t.row);
  }
}

template <int kDim>
__device__ __forceinline__ void Copy(const Params& p, Shared<kDim>& s) {
  const int num_tiles = p.counters[0], num_items = num_tiles * p.heads;
  int id = blockIdx.x;
  if (id < num_items) {
    int next = 0;
    if (threadIdx.x % 32 == 0) next = atomicAdd(&p.counters[1], 1);
    Tile tile = p.tiles[Item(id, num_tiles, p.group).tile];
    Pages pages(p, tile);
    Ring<kStages> k, v;
    uint32_t q_phase = 0, clear_phase = 0;
    for (;;) {
      // What the next item needs to begin is fetched while this one is copied.
      next = __shfl_sync(kAllLanes, next, 0);
      int later = 0;
      if (threadIdx.x % 32 == 0) later = atomicAdd(&p.counters[1], 1);
      const Item item(id, num_tiles, p.group);
      const Tile next_tile =
          p.tiles[next < num_items ? Item(next, num_tiles, p.group).tile : item.tile];

      const auto copy_keys = [&](int2 both) {
        BarrierWait(&s.k_empty[k.stage], k.phase ^ 1);
        CopyPages<kDim>(&p.k, &s.k_full[k.stage], s.k[k.stage], item.kv_head, both);
        k.Next();
      };
      int2 both = {pages.Get(0), pages.Get(1)};
      copy_keys(both);
      BarrierWait(&s.q_empty, q_phase ^ 1);
      CopyQueries(p, s, tile, item.head);
      q_phase ^= 1;
      for (int t = 1; t < tile.key_tiles; ++t) {
        const int2 ahead = {pages.Get(2 * t), pages.Get(2 * t + 1)};
        copy_keys(ahead);
        BarrierWait(&s.v_empty[v.stage], v.phase ^ 1);
        CopyPages<kDim>(&p.v, &s.v_full[v.stage], s.v[v.stage], item.kv_head, both);
        v.Next();
        both = ahead;
      }
      pages = Pages(p, next_tile);
      BarrierWait(&s.v_empty[v.stage], v.phase ^ 1);
      const int valid = tile.length - (tile.key_tiles - 1) * kKeys;
      if (valid >= kKeys) {
        CopyPages<kDim>(&p.v, &s.v_full[v.stage], s.v[v.stage], item.kv_head, both);
      } else {
        CopyAndClear(p, s, v.stage, clear_phase, item.kv_head, both, max(valid, 0));
        clear_phase ^= 1;
      }
      v.Next();
      if (next >= num_items) break;
      id = next;
      next = later;
      tile = next_tile;
    }
    BarrierWait(&s.q_empty, q_phase ^ 1);
  }
  if (threadIdx.x % 32 != 0) return;
  s.work.rows = 0;
  BarrierArrive(&s.q_full);
}

// Four 16-bit pairs of each of four neighbouring threads, transposed: thread i gets the i-th of
// all.
__device__ __forceinline__ uint4 TransposeQuad(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  uint32_t x = __shfl_xor_sync(kAllLanes, odd ? a : b, 1),
           y = __shfl_xor_sync(kAllLanes, odd ? c : d, 1);
  if (odd) {
    a = x, c = y;
  } else {
    b = x, d = y;
  }
  x = __shfl_xor_sync(kAllLanes, high ? a : c, 2), y = __shfl_xor_sync(kAllLanes, high ? b : d, 2);
  if (high) {
    a = x, b = y;
  } else {
    c = x, d = y;
  }
  return make_uint4(a, b, c, d);
}

// 64 rows of one tile; a thread holds parts of the rows r = 16 warp + lane / 4 and r + 8.
template <int kDim>
struct Multiplier {
  const Params& p;
  Shared<kDim>& s;
  const int group;  // warpgroup 0 or 1
  Ring<kStages> k, v;

  float out[kDim / 2];
  float scores[kKeys / 2];
  uint32_t weights[kKeys / 16][4];  // bf16 pairs
  float top[2], sum[2], factor[2];

  // scores = Q K^T
  __device__ __forceinline__ void Score() {
    const uint64_t q = WgmmaDescriptor(s.q + group * kGroupRows * 128);
    const uint64_t keys = WgmmaDescriptor(s.k[k.stage]);
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const uint64_t at = (i / 4 * kColumnTile + i % 4 * 32) >> 4;
      WgmmaSs<0, 0>(scores, q + at, keys + at, i > 0);
    }
    WgmmaCommit();
  }

  // out += weights V
  __device__ __forceinline__ void Weigh() {
    const uint64_t values = WgmmaDescriptor(s.v[v.stage], kColumnTile);
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      WgmmaRs<1>(out, weights[i], values + (i * 16 * 128 >> 4), 1);
    }
    WgmmaCommit();
  }

  // Scores become weights, still float; top and sum move on. `limit`: columns that the thread's two
  // rows see, counted from its first column. Written so that a row gets the same bits either way.
  template <bool kMasked>
  __device__ __forceinline__ void Softmax(int2 limit) {
    if constexpr (kMasked) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        if (i / 4 * 8 + i % 2 >= (i % 4 < 2 ? limit.x : limit.y)) scores[i] = kNoKey;
      }
    }
    float best[4] = {scores[0], scores[1], scores[2], scores[3]};
#pragma unroll
    for (int i = 4; i < kKeys / 2; ++i) best[i % 4] = fmaxf(best[i % 4], scores[i]);
    float shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float now = fmaxf(top[r], RowMax(fmaxf(best[2 * r], best[2 * r + 1])));
      const float base = kMasked && now == kNoKey ? 0.0f : now;
      factor[r] = Exp2((top[r] - base) * p.scale);
      shift[r] = base * p.scale;
      top[r] = now;
    }
    float added[4] = {};
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      scores[i] = Exp2(__fmaf_rn(scores[i], p.scale, -shift[i % 4 / 2]));
      added[i % 4] += scores[i];
    }
    sum[0] = __fmaf_rn(sum[0], factor[0], added[0] + added[1]);
    sum[1] = __fmaf_rn(sum[1], factor[1], added[2] + added[3]);
  }

  __device__ __forceinline__ void Rescale() {
    // Once the largest score has been met, factors are 1.
    if (!__any_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) out[i] *= factor[i % 4 / 2];
  }

  __device__ __forceinline__ void Pack() {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      weights[i / 4][i % 4] = PackBf16(scores[2 * i], scores[2 * i + 1]);
    }
  }

  template <bool kMasked>
  __device__ __forceinline__ void Step(int2 limit, bool is_last) {
    BarrierWait(&s.k_full[k.stage], k.phase);
    NamedBarrierSync(1 + group, 256);  // our turn at the tensor cores
    WgmmaFence();
    Score();
    BarrierWait(&s.v_full[v.stage], v.phase);
    WgmmaFence();
    Weigh();
    NamedBarrierArrive(2 - group, 256);
    WgmmaWait<1>();
    WgmmaHold(scores);
    Release(&s.k_empty[k.stage]);
    if (is_last) Release(&s.q_empty);
    k.Next();
    Softmax<kMasked>(limit);
    WgmmaWait<0>();
    WgmmaHold(out);
    Release(&s.v_empty[v.stage]);
    v.Next();
    Rescale();
    Pack();
  }

  __device__ __forceinline__ void Run(const Work& w) {
    const int thread = threadIdx.x % 128, row = thread / 32 * 16 + thread % 32 / 4;
    const int first = w.position + group * kGroupRows;  // of the warpgroup
    const auto visible = [&](int r) { return min(first + r + 1, w.length); };
    const int column = threadIdx.x % 4 * 2;
    const int2 limit = {visible(row) - column, visible(row + 8) - column};
    const auto limit_at = [&](int t) {
      return make_int2(limit.x - t * kKeys, limit.y - t * kKeys);
    };

#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) out[i] = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; ++r) top[r] = kNoKey, sum[r] = 0.0f;

    BarrierWait(&s.k_full[k.stage], k.phase);
    WgmmaFence();
    Score();
    WgmmaWait<0>();
    WgmmaHold(scores);
    Release(&s.k_empty[k.stage]);
    if (w.key_tiles == 1) Release(&s.q_empty);
    k.Next();
    Softmax<true>(limit);
    Pack();

    const int whole = max(visible(0), 0) / kKeys;  // tiles that all rows see all of
    int t = 1;
    for (; t < min(whole, w.key_tiles); ++t) Step<false>(limit_at(t), t == w.key_tiles - 1);
    for (; t < w.key_tiles; ++t) Step<true>(limit_at(t), t == w.key_tiles - 1);

    BarrierWait(&s.v_full[v.stage], v.phase);
    WgmmaFence();
    Weigh();
    WgmmaWait<0>();
    WgmmaHold(out);
    Release(&s.v_empty[v.stage]);
    v.Next();
    Write(w, group * kGroupRows + row);
  }

  __device__ __forceinline__ void Write(const Work& w, int row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = RowSum(sum[r]), inverse = total > 0.0f ? 1.0f / total : 0.0f;
      const int at = row + 8 * r;
      const int64_t to = w.row + at;
      const bool is_ours = at < w.rows;
      auto* to_out = static_cast<__nv_bfloat16*>(p.out.data) + to * p.out.row +
                     w.head * p.out.head + threadIdx.x % 4 * 8;
#pragma unroll
      for (int i = 0; i < kDim / 32; ++i) {
        uint32_t pair[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int e = (4 * i + c) * 4 + 2 * r;
          pair[c] = PackBf16(out[e] * inverse, out[e + 1] * inverse);
        }
        const uint4 eight = TransposeQuad(pair[0], pair[1], pair[2], pair[3]);
        if (is_ours) *reinterpret_cast<uint4*>(to_out + 32 * i) = eight;
      }
      if (p.lse && is_ours && threadIdx.x % 4 == 0) {
        p.lse[to * p.lse_row + w.head] =
            total > 0.0f ? __fmaf_rn(top[r], p.lse_scale, logf(total)) : kNoKey;
      }
    }
  }
};

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1) Prefill(const __grid_constant__ Params p) {
  auto& s = SharedMemory<Shared<kDim>>();
  if (threadIdx.x == 0) {
    constexpr int kReaders = 8;  // warps
    BarrierInit(&s.q_full, 1);
    BarrierInit(&s.q_empty, kReaders);
    BarrierInit(&s.v_copied, 1);
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&s.k_full[i], 1);
      BarrierInit(&s.v_full[i], 1);
      BarrierInit(&s.k_empty[i], kReaders);
      BarrierInit(&s.v_empty[i], kReaders);
    }
    BarrierInitFence();
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    RegistersDown<40>();
    if (threadIdx.x < 32) Copy(p, s);
  } else {
    RegistersUp<232>();
    Multiplier<kDim> m{p, s, static_cast<int>(threadIdx.x) / 128 - 1};
    if (m.group == 1) NamedBarrierArrive(1, 256);
    uint32_t phase = 0;
    for (;; phase ^= 1) {
      BarrierWait(&s.q_full, phase);
      const Work w = s.work;
      if (w.rows == 0) break;
      m.Run(w);
    }
  }
}

template <int kDim>
void Launch(Queue& queue, const AttentionProblem& a) {
  Scratch scratch(queue);
  const int64_t most = a.num_rows / kQueries + a.sequences.count;
  Tile* tiles = scratch.Get<Tile>(most);
  int* counters = scratch.Get<int>(2);
  const auto blocks = static_cast<int>(std::min<int64_t>(most * a.heads, Multiprocessors()));
  ListTiles<<<1, 1024, 0, queue.stream()>>>(a.sequences, blocks, tiles, counters);
  CheckLaunch();

  const Params p{
      .q = MakeTensorMap(a.q.data, {.dims = {kDim, a.heads, a.num_rows},
                                    .strides = {a.q.head * 2, a.q.row * 2},
                                    .box = {64, 1, kQueries}}),
      .k = PageMap(a.kv.k, kDim),
      .v = PageMap(a.kv.v, kDim),
      .tiles = tiles,
      .counters = counters,
      .block_table = a.sequences.block_table,
      .table_stride = a.sequences.table_stride,
      .out = a.out,
      .lse = a.lse,
      .lse_row = a.lse_row,
      .scale = a.scale() * kLog2E,
      .lse_scale = a.scale(),
      .heads = a.heads,
      .group = a.group,
      .num_pages = a.num_pages,
  };
  constexpr int kBytes = kSharedBytes<Shared<kDim>>;
  AllowSharedMemory<Prefill<kDim>, kBytes>();
  Prefill<kDim><<<static_cast<unsigned>(blocks), kThreads, kBytes, queue.stream()>>>(p);
  CheckLaunch();
}

}  // namespace

void PrefillAttention(Queue& queue, const AttentionProblem& p) {
  if (p.dim == 128) {
    Launch<128>(queue, p);
  } else {
    Launch<64>(queue, p);
  }
}

}  // namespace mm01::cuda
