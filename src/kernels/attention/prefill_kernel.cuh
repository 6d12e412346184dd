// Prefill: softmax(Q K^T) V on the tensor cores, scores never leaving the registers.
//
// A block takes one query head's tile of 128 rows at a time and walks the keys in tiles of 128 (two
// pages) from the cache's first. One warp copies: queries, and three stages ahead the keys of tile
// t with the values of tile t - 1, which are needed together. Two warpgroups of 64 rows each
// multiply; while one does the exponentials of its tile, the other has the tensor cores.
//
// A small kernel first lists the tiles of the ragged batch, those with most keys first; blocks take
// (kv head, tile, query head) from that list as they get free, so that the query heads that read
// the same pages run side by side. Who takes what changes no bit: a row meets the same key tiles
// whatever the tile of queries it is in, and one that it does not see at all leaves its sums as
// they are (factor 1, weights 0).
//
// Keys and values lie in pages, or (kPacked) in rows side by side with the queries': then a tile of
// keys is one box of rows, counted from the document's first.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/attention/attention_hopper.cuh"
#include "kernels/attention/prefill_tiles.cuh"

namespace mm01::cuda::prefill {

constexpr int kStages = 3;              // tiles of keys, each with values, in shared memory
constexpr int kGroupRows = 64;          // of a warpgroup
constexpr int kThreads = 3 * 128;       // a warpgroup that copies, two that multiply
constexpr int kColumnTile = 128 * 128;  // bytes of 128 rows of 64 columns, as wgmma reads them

struct Params {
  CUtensorMap q, k, v;
  const Tile* tiles;
  int* counters;               // [0] number of tiles, [1] the next item to be taken
  const int32_t* block_table;  // of pages
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
  uint64_t q_full, q_empty, full[kStages], empty[kStages];
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
  __device__ __forceinline__ int2 Of(int t) {
    const int first = Get(2 * t);
    return {first, Get(2 * t + 1)};
  }
};

// Where the keys of a tile are: its two pages, or its first row.
struct Rows {
  int first;

  __device__ __forceinline__ Rows(const Params&, const Tile& t) : first(t.row - t.position) {}
  __device__ __forceinline__ int2 Of(int t) const { return {first + t * kKeys, 0}; }
};

// By one thread.
template <int kDim, bool kPacked>
__device__ __forceinline__ void CopyKeys(const CUtensorMap* map, uint64_t* barrier,
                                         unsigned char* stage, int kv_head, int2 at) {
#pragma unroll
  for (int c = 0; c < kDim / 64; ++c) {
    unsigned char* to = stage + c * kColumnTile;
    if constexpr (kPacked) {
      TmaLoad(to, map, barrier, 64 * c, kv_head, at.x);
    } else {
      TmaLoad(to, map, barrier, 64 * c, 0, kv_head, at.x);
      TmaLoad(to + kPagePart, map, barrier, 64 * c, 0, kv_head, at.y);
    }
  }
}

// The last tile of values, of which `valid` rows are keys and the rest, which weights of zero do
// not make harmless, may be anything.
template <int kDim, bool kPacked>
__device__ __forceinline__ void CopyAndClear(const Params& p, Shared<kDim>& s, int stage,
                                             uint32_t phase, int kv_head, int2 at, int valid) {
  if (threadIdx.x % 32 == 0) {
    BarrierExpect(&s.v_copied, Shared<kDim>::kTileBytes);
    CopyKeys<kDim, kPacked>(&p.v, &s.v_copied, s.v[stage], kv_head, at);
  }
  BarrierWait(&s.v_copied, phase);
  for (int c = 0; c < kDim / 64; ++c) {
    for (int at = valid * 128 + threadIdx.x % 32 * 16; at < kColumnTile; at += 32 * 16) {
      *reinterpret_cast<uint4*>(s.v[stage] + c * kColumnTile + at) = make_uint4(0, 0, 0, 0);
    }
  }
  ProxyFence();
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(&s.full[stage]);
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

template <int kDim, bool kPacked>
__device__ __forceinline__ void Copy(const Params& p, Shared<kDim>& s) {
  const bool leads = threadIdx.x % 32 == 0;
  const int num_tiles = p.counters[0], num_items = num_tiles * p.heads;
  StageRing<kStages> ring;
  uint32_t q_phase = 0, clear_phase = 0;
  for (int id = blockIdx.x, next = 0; id < num_items; id = __shfl_sync(kAllLanes, next, 0)) {
    const Item item(id, num_tiles, p.group);
    const Tile tile = p.tiles[item.tile];
    const int valid = tile.length - (tile.key_tiles - 1) * kKeys;  // keys of the last tile
    std::conditional_t<kPacked, Rows, Pages> keys(p, tile);
    int2 before = {};
    for (int t = 0; t <= tile.key_tiles; ++t) {
      // An item is taken late, when it is known who is free; stages ahead of the multiplying warps
      // hide what that costs.
      if (leads && t == max(tile.key_tiles - 3, 0)) next = atomicAdd(&p.counters[1], 1);
      const bool has_keys = t < tile.key_tiles;
      const bool has_values = t > 0;
      int2 both = {};
      if (has_keys) both = keys.Of(t);
      uint64_t* full = &s.full[ring.stage];
      BarrierWait(&s.empty[ring.stage], ring.parity ^ 1);
      if (!has_keys && valid < kKeys) {
        CopyAndClear<kDim, kPacked>(p, s, ring.stage, clear_phase, item.kv_head, before,
                                    max(valid, 0));
        clear_phase ^= 1;
      } else if (leads) {
        BarrierExpect(full, (has_keys + has_values) * Shared<kDim>::kTileBytes);
        if (has_keys) CopyKeys<kDim, kPacked>(&p.k, full, s.k[ring.stage], item.kv_head, both);
        if (has_values) CopyKeys<kDim, kPacked>(&p.v, full, s.v[ring.stage], item.kv_head, before);
      }
      __syncwarp();
      if (t == 0) {
        BarrierWait(&s.q_empty, q_phase ^ 1);
        CopyQueries(p, s, tile, item.head);
        q_phase ^= 1;
      }
      ring.Next();
      before = both;
    }
  }
  BarrierWait(&s.q_empty, q_phase ^ 1);
  if (!leads) return;
  // No race, though racecheck reports one: each warp has read s.work before one of its lanes
  // arrived at q_empty for all.
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
  const uint64_t q, keys, values;
  StageRing<kStages> ring;

  float out[kDim / 2];
  float scores[kKeys / 2];
  uint32_t weights[kKeys / 16][4];  // bf16 pairs
  float top[2], sum[2], factor[2], shift[2];

  __device__ __forceinline__ Multiplier(const Params& params, Shared<kDim>& shared, int warpgroup)
      : p(params),
        s(shared),
        group(warpgroup),
        q(WgmmaDescriptor(shared.q + warpgroup * kGroupRows * 128)),
        keys(WgmmaDescriptor(shared.k)),
        values(WgmmaDescriptor(shared.v, kColumnTile)) {}

  // scores = Q K^T
  __device__ __forceinline__ void Score() {
    const uint64_t stage = Further(keys, ring.stage * Shared<kDim>::kTileBytes);
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const uint32_t at = i / 4 * kColumnTile + i % 4 * 32;
      WgmmaSs<0, 0>(scores, Further(q, at), Further(stage, at), i > 0);
    }
    WgmmaCommit();
  }

  // out += weights V
  __device__ __forceinline__ void Weigh() {
    const uint64_t stage = Further(values, ring.stage * Shared<kDim>::kTileBytes);
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      WgmmaRs<1>(out, weights[i], Further(stage, i * 16 * 128), 1);
    }
    WgmmaCommit();
  }

  // top moves on. `limit`: columns that the thread's two rows see, counted from its first column.
  // Written so that a row gets the same bits either way.
  template <bool kMasked>
  __device__ __forceinline__ void FindTop(int2 limit) {
    if constexpr (kMasked) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        if (i / 4 * 8 + i % 2 >= (i % 4 < 2 ? limit.x : limit.y)) scores[i] = kNoKey;
      }
    }
    float best[4] = {scores[0], scores[1], scores[2], scores[3]};
#pragma unroll
    for (int i = 4; i < kKeys / 2; ++i) best[i % 4] = fmaxf(best[i % 4], scores[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float now = fmaxf(top[r], RowMax(fmaxf(best[2 * r], best[2 * r + 1])));
      const float base = kMasked && now == kNoKey ? 0.0f : now;
      factor[r] = Exp2((top[r] - base) * p.scale);
      shift[r] = base * p.scale;
      top[r] = now;
    }
  }

  // Scores become weights; sum and out move on. The exponentials take longest, so the rest is
  // strewn in between, and `out` is rescaled without asking whether it changes.
  __device__ __forceinline__ void MakeWeights() {
    float added[4] = {};
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      const int r = i % 2;
      const float x = Exp2(__fmaf_rn(scores[2 * i], p.scale, -shift[r]));
      const float y = Exp2(__fmaf_rn(scores[2 * i + 1], p.scale, -shift[r]));
      added[2 * r] += x;
      added[2 * r + 1] += y;
      weights[i / 4][i % 4] = PackBf16(x, y);
      if (i < kDim / 4) out[2 * i] *= factor[r], out[2 * i + 1] *= factor[r];
    }
    sum[0] = __fmaf_rn(sum[0], factor[0], added[0] + added[1]);
    sum[1] = __fmaf_rn(sum[1], factor[1], added[2] + added[3]);
  }

  __device__ __forceinline__ void DoneWithStage() {
    Release(&s.empty[ring.stage]);
    ring.Next();
  }

  template <bool kMasked>
  __device__ __forceinline__ void Step(int2 limit, bool is_last) {
    BarrierWait(&s.full[ring.stage], ring.parity);
    NamedBarrierSync(1 + group, 256);  // our turn at the tensor cores
    WgmmaFence();
    Score();
    Weigh();
    NamedBarrierArrive(2 - group, 256);
    WgmmaWait<1>();
    WgmmaHold(scores);
    FindTop<kMasked>(limit);
    // A branch at this place keeps the compiler from waiting for the values before it looks for the
    // maximum.
    if (is_last) Release(&s.q_empty);
    WgmmaWait<0>();
    WgmmaHold(out);
    DoneWithStage();
    MakeWeights();
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

    BarrierWait(&s.full[ring.stage], ring.parity);
    WgmmaFence();
    Score();
    WgmmaWait<0>();
    WgmmaHold(scores);
    if (w.key_tiles == 1) Release(&s.q_empty);
    DoneWithStage();
    FindTop<true>(limit);
    MakeWeights();

    const int whole = max(visible(0), 0) / kKeys;  // tiles that all rows see all of
    int t = 1;
    for (; t < min(whole, w.key_tiles); ++t) Step<false>(limit_at(t), t == w.key_tiles - 1);
    for (; t < w.key_tiles; ++t) Step<true>(limit_at(t), t == w.key_tiles - 1);

    BarrierWait(&s.full[ring.stage], ring.parity);
    WgmmaFence();
    Weigh();
    WgmmaWait<0>();
    WgmmaHold(out);
    DoneWithStage();
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

template <int kDim, bool kPacked>
__global__ void __launch_bounds__(kThreads, 1) Prefill(const __grid_constant__ Params p) {
  auto& s = SharedMemory<Shared<kDim>>();
  if (threadIdx.x == 0) {
    constexpr int kReaders = 8;  // warps
    BarrierInit(&s.q_full, 1);
    BarrierInit(&s.q_empty, kReaders);
    BarrierInit(&s.v_copied, 1);
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&s.full[i], 1);
      BarrierInit(&s.empty[i], kReaders);
    }
    BarrierInitFence();
  }
  __syncthreads();

  const int warpgroup = Uniform(static_cast<int>(threadIdx.x) / 128);
  if (warpgroup == 0) {
    RegistersDown<40>();
    if (threadIdx.x < 32) Copy<kDim, kPacked>(p, s);
  } else {
    RegistersUp<232>();
    Multiplier<kDim> m(p, s, warpgroup - 1);
    if (m.group == 1) NamedBarrierArrive(1, 256);
    uint32_t phase = 0;
    for (;; phase ^= 1) {
      BarrierWait(&s.q_full, phase);
      const Work w = {Uniform(s.work.row),      Uniform(s.work.rows),   Uniform(s.work.head),
                      Uniform(s.work.position), Uniform(s.work.length), Uniform(s.work.key_tiles)};
      if (w.rows == 0) break;
      m.Run(w);
    }
  }
}

// With the maps of keys and values in `p`; the rest of it is filled in here.
template <int kDim, bool kPacked>
void Launch(Queue& queue, const AttentionProblem& a, Params p) {
  Scratch scratch(queue);
  const int64_t most = a.num_rows / kQueries + a.sequences.count;
  Tile* tiles = scratch.Get<Tile>(most);
  int* counters = scratch.Get<int>(2);
  const auto blocks = static_cast<int>(std::min<int64_t>(most * a.heads, Multiprocessors()));
  ListTiles<<<1, 1024, 0, queue.stream()>>>(a.sequences, blocks, tiles, counters);
  CheckLaunch();
  p.q = MakeTensorMap(a.q.data, {.dims = {kDim, a.heads, a.num_rows},
                                 .strides = {a.q.head * 2, a.q.row * 2},
                                 .box = {64, 1, kQueries}});
  p.tiles = tiles;
  p.counters = counters;
  p.block_table = a.sequences.block_table;
  p.table_stride = a.sequences.table_stride;
  p.out = a.out;
  p.lse = a.lse;
  p.lse_row = a.lse_row;
  p.scale = a.scale() * kLog2E;
  p.lse_scale = a.scale();
  p.heads = a.heads;
  p.group = a.group;
  p.num_pages = a.num_pages;
  constexpr int kBytes = kSharedBytes<Shared<kDim>>;
  AllowSharedMemory<Prefill<kDim, kPacked>, kBytes>();
  Prefill<kDim, kPacked><<<static_cast<unsigned>(blocks), kThreads, kBytes, queue.stream()>>>(p);
  CheckLaunch();
}

}  // namespace mm01::cuda::prefill
