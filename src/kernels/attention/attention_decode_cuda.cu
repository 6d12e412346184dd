// Decode: a few rows a sequence over a long cache, bound by reading the pages once.
//
// Keys are cut into splits at fixed positions. One block a multiprocessor takes a contiguous part
// of all splits of all sequences, about as many pages as any other, and walks it without a break:
// one warp copies pages, five ahead; four warps each fold 16 of a page's 64 keys into sums of their
// own, for all query heads of the kv head and as many rows as fit into the 16 rows of a tensor core
// instruction, and add the four up at the end of a split. A second kernel merges a row's splits.
// Where a split ends up, and the order of every sum, follow from positions alone.
#include <algorithm>

#include "kernels/attention/attention_hopper.cuh"
#include "kernels/attention/decode_plan.cuh"
#include "kernels/cuda/overlap.cuh"

namespace mm01::cuda {
namespace {

constexpr int kRows = 16;   // query rows and heads of a block, padded
constexpr int kStages = 5;  // pages of keys and values in shared memory
constexpr int kMergeWarps = 8;

struct Params {
  CUtensorMap k, v;
  DecodeWork work;
  Heads q, out;
  float* lse;
  int64_t lse_row;
  float* max_sum;  // [units, rows of a block, 2]  of a split, at its first unit; max unscaled
  float* acc;      // [units, rows of a block, K]
  float scale;     // of the scores, times log2(e)
  float lse_scale;
  int heads, group;
  int block_rows;  // a tile's rows with their heads
};

template <int kDim>
struct Shared {
  static constexpr int kPageBytes = kPage * kDim * 2;
  static constexpr int kStride = kDim + 8;  // of acc: its rows start 8 banks apart
  unsigned char k[kStages][kPageBytes];
  unsigned char v[kStages][kPageBytes];
  float acc[kWarps][kRows][kStride];
  float max[kWarps][kRows], sum[kWarps][kRows];
  uint64_t full[kStages], empty[kStages];
  PlanRoom plan;
};

template <int kDim>
__device__ __forceinline__ void Copy(const Params& p, Shared<kDim>& s) {
  const int lane = threadIdx.x % 32;
  StageRing<kStages> ring;
  for (Cursor c(p.work, s.plan); c.More(); c.Next()) {
    const int count = c.NumPages();
    const int32_t* table =
        p.work.sequences.block_table + c.seq * p.work.sequences.table_stride + c.Begin() / kPage;
    const int pages = lane < count ? table[lane] : 0;  // at most 16
    for (int i = 0; i < count; ++i) {
      const int page = __shfl_sync(kAllLanes, pages, i);
      BarrierWait(&s.empty[ring.stage], ring.parity ^ 1);
      if (lane == 0) {
        BarrierExpect(&s.full[ring.stage], 2 * Shared<kDim>::kPageBytes);
#pragma unroll
        for (int part = 0; part < kDim / 64; ++part) {
          const int at = part * kPage * 128;
          TmaLoad(s.k[ring.stage] + at, &p.k, &s.full[ring.stage], 64 * part, 0, c.kv_head, page);
          TmaLoad(s.v[ring.stage] + at, &p.v, &s.full[ring.stage], 64 * part, 0, c.kv_head, page);
        }
      }
      ring.Next();
    }
  }
}

// d[16, 8] += a[16, 16] b[16, 8]
__device__ __forceinline__ void Multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The 16 query rows, and what 16 keys of each page gave them. A thread holds parts of rows
// lane / 4 and that + 8; row = row of the tile * group + head.
template <int kDim>
struct Multiplier {
  const Params& p;
  Shared<kDim>& s;
  const int warp, lane;
  uint32_t q[kDim / 16][4];
  float acc[kDim / 8][4];
  float top[2], sum[2];

  __device__ __forceinline__ void LoadQueries(const Cursor& c) {
    const auto* base = static_cast<const __nv_bfloat16*>(p.q.data);
    const uint32_t* row[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = lane / 4 + 8 * r, query = c.tile * p.work.tile_rows + at / p.group;
      const bool is_there = at < p.block_rows && query < c.sequence.rows;
      const int64_t head = c.kv_head * p.group + at % p.group;
      row[r] = is_there ? reinterpret_cast<const uint32_t*>(
                              base + (c.sequence.row + query) * p.q.row + head * p.q.head)
                        : nullptr;
    }
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const uint32_t* from = row[part % 2];
        q[i][part] = from ? from[i * 8 + part / 2 * 4 + lane % 4] : 0;
      }
    }
  }

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int r = 0; r < 2; ++r) top[r] = kNoKey, sum[r] = 0.0f;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.0f;
  }

  // Keys that the thread's row r sees.
  __device__ __forceinline__ int Visible(const Cursor& c, int r) const {
    return c.sequence.Visible(c.tile * p.work.tile_rows + (lane / 4 + 8 * r) / p.group);
  }

  // scores[n] of keys 16 warp + 8 n .. + 7 of the page
  __device__ __forceinline__ void Score(const unsigned char* keys, float (&scores)[2][4]) const {
    const uint32_t row = 16 * warp + lane / 16 * 8 + lane % 8, byte = lane / 8 % 2 * 16;
    const uint32_t base = SharedAddress(keys);
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      uint32_t b[4];
      LoadMatrix(base + i / 4 * kPage * 128 + Swizzle128(row, i % 4 * 32 + byte), b[0], b[1], b[2],
                 b[3]);
      Multiply(scores[0], q[i], b[0], b[1]);
      Multiply(scores[1], q[i], b[2], b[3]);
    }
  }

  // Scores become weights; top, sum and acc move on. limit: keys that the two rows see, counted
  // from the thread's first.
  __device__ __forceinline__ void Softmax(float (&scores)[2][4], int2 limit) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int seen = r == 0 ? limit.x : limit.y;
      float best = kNoKey;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = scores[i / 2][2 * r + i % 2];
        if (i / 2 * 8 + i % 2 >= seen) x = kNoKey;
        best = fmaxf(best, x);
      }
      const float now = fmaxf(top[r], RowMax(best)), base = now == kNoKey ? 0.0f : now;
      factor[r] = Exp2((top[r] - base) * p.scale);
      top[r] = now;
      float added = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = scores[i / 2][2 * r + i % 2];
        x = Exp2(__fmaf_rn(x, p.scale, -(base * p.scale)));
        added += x;
      }
      sum[r] = __fmaf_rn(sum[r], factor[r], added);
    }
    if (!__any_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i][e] *= factor[e / 2];
    }
  }

  // acc += weights V, the weights in two bf16 terms: one alone would cost 1.5e-3, as much as
  // rounding the output. Values of keys that are none may be anything, which weights of zero do not
  // make harmless: `keys` of the thread's are some.
  __device__ __forceinline__ void Weigh(const unsigned char* values, const float (&weights)[2][4],
                                        int keys) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float x = weights[i / 2][i % 2 * 2], y = weights[i / 2][i % 2 * 2 + 1];
      high[i] = PackBf16(x, y);
      low[i] =
          PackBf16(x - __uint_as_float(high[i] << 16), y - __uint_as_float(high[i] & 0xffff0000u));
    }
    uint32_t mask[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      mask[n] = (8 * n < keys ? 0xffffu : 0u) | (8 * n + 1 < keys ? 0xffff0000u : 0u);
    }
    const uint32_t row = 16 * warp + lane / 8 % 2 * 8 + lane % 8, byte = lane / 16 * 16;
    const uint32_t base = SharedAddress(values);
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      uint32_t b[4];
      LoadMatrixTransposed(base + i / 4 * kPage * 128 + Swizzle128(row, i % 4 * 32 + byte), b[0],
                           b[1], b[2], b[3]);
#pragma unroll
      for (int n = 0; n < 4; ++n) b[n] &= mask[n % 2];
      Multiply(acc[2 * i], high, b[0], b[1]);
      Multiply(acc[2 * i + 1], high, b[2], b[3]);
      Multiply(acc[2 * i], low, b[0], b[1]);
      Multiply(acc[2 * i + 1], low, b[2], b[3]);
    }
  }

  __device__ __forceinline__ void Split(const Cursor& c, StageRing<kStages>& ring) {
    Clear();
    const int mine = c.Begin() + 16 * warp + lane % 4 * 2;  // the thread's first key of a page
    int2 limit = {Visible(c, 0) - mine, Visible(c, 1) - mine};
    int keys = c.sequence.length - mine;
    for (int i = c.NumPages(); i > 0; --i) {
      BarrierWait(&s.full[ring.stage], ring.parity);
      float scores[2][4] = {};
      Score(s.k[ring.stage], scores);
      Softmax(scores, limit);
      Weigh(s.v[ring.stage], scores, keys);
      ProxyFence();  // the stage has been read
      Release(&s.empty[ring.stage]);
      ring.Next();
      limit.x -= kPage, limit.y -= kPage, keys -= kPage;
    }
    Publish();
    NamedBarrierSync<1, 32 * kWarps>();
    AddUp(c.Slot());
    NamedBarrierSync<1, 32 * kWarps>();
  }

  __device__ __forceinline__ void Publish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
      const float total = RowSum(sum[r]);
      if (lane % 4 == 0) s.max[warp][row] = top[r], s.sum[warp][row] = total;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        *reinterpret_cast<float2*>(&s.acc[warp][row][8 * i + lane % 4 * 2]) =
            make_float2(acc[i][2 * r], acc[i][2 * r + 1]);
      }
    }
  }

  // The four warps' sums of a split become one, in the order of the warps.
  __device__ __forceinline__ void AddUp(int64_t slot) {
    for (int i = threadIdx.x; i < p.block_rows * kDim; i += 32 * kWarps) {
      const int row = i / kDim, column = i % kDim;
      float best = kNoKey, total = 0.0f, x = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) best = fmaxf(best, s.max[w][row]);
      const float base = best == kNoKey ? 0.0f : best;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float factor = Exp2((s.max[w][row] - base) * p.scale);
        total = __fmaf_rn(s.sum[w][row], factor, total);
        x = __fmaf_rn(s.acc[w][row][column], factor, x);
      }
      p.acc[(slot * p.block_rows + row) * kDim + column] = x;
      if (column == 0) {
        float* to = p.max_sum + (slot * p.block_rows + row) * 2;
        to[0] = best;
        to[1] = total;
      }
    }
  }
};

template <int kDim>
__global__ void __launch_bounds__(kDecodeThreads, 1) Decode(const __grid_constant__ Params p) {
  auto& s = SharedMemory<Shared<kDim>>();
  AllowNextKernel();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&s.full[i], 1);
      BarrierInit(&s.empty[i], kWarps);
    }
    BarrierInitFence();
  }
  AwaitEarlierKernels();
  Plan(p.work, s.plan);

  if (threadIdx.x / 32 == kWarps) {
    Copy(p, s);
    return;
  }
  Multiplier<kDim> m{p, s, static_cast<int>(threadIdx.x) / 32, static_cast<int>(threadIdx.x) % 32};
  StageRing<kStages> ring;
  for (Cursor c(p.work, s.plan); c.More(); c.Next()) {
    m.LoadQueries(c);
    m.Split(c, ring);
  }
}

// One block a row and head. Warp w adds the splits w, w + 8, ... in order; then the eight sums are
// added in order.
template <int kDim>
__global__ void __launch_bounds__(32 * kMergeWarps) MergeSplits(const __grid_constant__ Params p) {
  constexpr int kEach = kDim / 32;  // columns of a lane
  struct alignas(4 * kEach) Each {
    float x[kEach];
  };
  __shared__ float best[kMergeWarps], total[kMergeWarps], sums[kMergeWarps][kDim];
  AllowNextKernel();
  AwaitEarlierKernels();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t row = blockIdx.x / p.heads;
  const int head = blockIdx.x % p.heads;
  const RowPlace place = p.work.places[row];
  const int64_t first = place.unit + static_cast<int64_t>(head / p.group) * place.units;
  const int in_block = place.row_of_tile * p.group + head % p.group;
  const int splits = SplitsOf(UnitsOf(place.keys));
  const auto slot = [&](int split) { return (first + FirstUnit(split)) * p.block_rows + in_block; };

  float top = kNoKey;
  for (int i = threadIdx.x; i < splits; i += 32 * kMergeWarps) {
    top = fmaxf(top, p.max_sum[slot(i) * 2]);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, step));
  if (lane == 0) best[warp] = top;
  __syncthreads();
  for (int w = 0; w < kMergeWarps; ++w) top = fmaxf(top, best[w]);
  const float base = top == kNoKey ? 0.0f : top;

  float sum = 0.0f, acc[kEach] = {};
#pragma unroll 8
  for (int i = warp; i < splits; i += kMergeWarps) {
    const int64_t at = slot(i);
    const float2 max_sum = reinterpret_cast<const float2*>(p.max_sum)[at];
    const float factor = Exp2((max_sum.x - base) * p.scale);
    sum = __fmaf_rn(max_sum.y, factor, sum);
    const Each from = reinterpret_cast<const Each*>(p.acc + at * kDim)[lane];
#pragma unroll
    for (int e = 0; e < kEach; ++e) acc[e] = __fmaf_rn(from.x[e], factor, acc[e]);
  }
  if (lane == 0) total[warp] = sum;
#pragma unroll
  for (int e = 0; e < kEach; ++e) sums[warp][lane * kEach + e] = acc[e];
  __syncthreads();

  if (threadIdx.x >= kDim) return;
  float all = 0.0f, x = 0.0f;
#pragma unroll
  for (int w = 0; w < kMergeWarps; ++w) all += total[w], x += sums[w][threadIdx.x];
  static_cast<__nv_bfloat16*>(p.out.data)[row * p.out.row + head * p.out.head + threadIdx.x] =
      __float2bfloat16_rn(all > 0.0f ? x / all : 0.0f);
  if (p.lse && threadIdx.x == 0) {
    p.lse[row * p.lse_row + head] = all > 0.0f ? __fmaf_rn(top, p.lse_scale, logf(all)) : kNoKey;
  }
}

// A sequence of n pages has at most n / 8 + 1 units, and all pages together are those of the pool.
int64_t MostUnits(const AttentionProblem& a, int tile_rows) {
  constexpr int64_t kUnitPages = kUnit / kKvPage;
  const int64_t of_table = a.sequences.count * ((a.table_width + kUnitPages - 1) / kUnitPages);
  const int64_t of_pool = a.num_pages / kUnitPages + a.sequences.count;
  const int64_t tiles = (std::min<int64_t>(a.max_rows, a.num_rows) + tile_rows - 1) / tile_rows;
  return std::min(of_table, of_pool) * tiles * a.kv_heads;
}

template <int kDim>
void Launch(Queue& queue, const AttentionProblem& a) {
  Scratch scratch(queue);
  Params p{.k = PageMap(a.kv.k, kDim),
           .v = PageMap(a.kv.v, kDim),
           .work = {.sequences = a.sequences, .kv_heads = a.kv_heads},
           .q = a.q,
           .out = a.out,
           .lse = a.lse,
           .lse_row = a.lse_row,
           .scale = a.scale() * kLog2E,
           .lse_scale = a.scale(),
           .heads = a.heads,
           .group = a.group};
  p.work.tile_rows = static_cast<int>(std::min<int64_t>(kRows / a.group, a.max_rows));
  p.block_rows = p.work.tile_rows * a.group;
  p.work.most_units = MostUnits(a, p.work.tile_rows);
  p.work.places = scratch.Get<RowPlace>(a.num_rows);
  p.max_sum = scratch.Get<float>(p.work.most_units * p.block_rows * 2);
  p.acc = scratch.Get<float>(p.work.most_units * p.block_rows * kDim);

  constexpr int kBytes = kSharedBytes<Shared<kDim>>;
  AllowSharedMemory<Decode<kDim>, kBytes>();
  const int64_t blocks = std::clamp<int64_t>(p.work.most_units, 1, Multiprocessors());
  LaunchOverlapped(queue, Decode<kDim>, static_cast<unsigned>(blocks), kDecodeThreads, kBytes, p);
  LaunchOverlapped(queue, MergeSplits<kDim>, static_cast<unsigned>(a.num_rows * a.heads),
                   32 * kMergeWarps, 0, p);
}

}  // namespace

void DecodeAttention(Queue& queue, const AttentionProblem& p) {
  if (p.dim == 128) {
    Launch<128>(queue, p);
  } else {
    Launch<64>(queue, p);
  }
}

}  // namespace mm01::cuda
