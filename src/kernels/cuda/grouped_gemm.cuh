// The persistent kernel behind grouped_gemm.h.
//
// A cluster of two blocks multiplies two neighbouring tiles of 128 rows of w with one tile of up to
// 320 rows of x: each block brings its own weights and half of the rows of x, which go to both. So
// weights are the first operand (M) and rows of x the second (N), which comes in steps of 32: an
// expert's rows pad to the next 32, whatever their number, and every pair of blocks has something
// to share.
//
//   warpgroup 0      one thread keeps four stages of 64 inputs on their way, and says what tile it
//                    is with the first stage of each; block 0's takes the next tile of all from a
//                    counter in device memory and tells block 1's
//   warpgroups 1, 2  64 of the tile's 128 rows of w each, sums in registers
//
// With w_up, a tile is 64 rows of each matrix, eight and eight in turn, so that a thread holds the
// sum over w (registers 0 and 1 of four) and over w_up (2 and 3) of the same outputs.
//
// Transposed weights [k][n] come as two boxes of 64 rows of k by 64 of n, one for each of
// warpgroups 1 and 2, and are an operand whose m varies fastest.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "device/tensor_map.cuh"
#include "kernels/cuda/decode_int8.cuh"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/wgmma_wide.cuh"

namespace mm01::cuda {

inline constexpr int kMaxUnits = 10;  // units of 32 rows of x in a tile

struct GroupedGemmParams {
  CUtensorMap w;
  CUtensorMap x[kMaxUnits];  // boxes of 16, 32, ... 160 rows: half a tile
  const RowGroup* groups;
  const int32_t* num_groups;
  int64_t num_rows;       // if there are no groups
  const bf16* scales[2];  // int8: of the first and the second eight of 16 rows of a tile
  int64_t scale_rows;     // of all experts together
  int64_t num_scales;     // a row
  int log_group;
  int n, k;
  int expert_rows;  // of w, from an expert's first to the next one's
  bool up_first;    // the tile's first eight rows are w_up's
  bool silu;
  bool pair_order;
  void* out;
  int64_t out_stride;
  bf16* products;  // kGatedKept
  int64_t products_stride;
  bf16* silu_out;  // kBf16Silu
  int64_t silu_stride;
  int silu_columns;
  int32_t* num_taken;  // tiles beyond the first of each cluster; zero before the kernel
};

// Each compiled in a file of its own.
void LaunchBf16Gemm(Queue& queue, const GroupedGemmParams& params, bool gated, DType out_type,
                    int64_t num_tiles);
void LaunchInt8Gemm(Queue& queue, const GroupedGemmParams& params, bool gated, int64_t num_tiles);
void LaunchTransposedGemm(Queue& queue, const GroupedGemmParams& params, int64_t num_tiles);
void LaunchKeptGemm(Queue& queue, const GroupedGemmParams& params, int64_t num_tiles);
void LaunchSiluGemm(Queue& queue, const GroupedGemmParams& params, int64_t num_tiles);

namespace {

enum class Store { kGated, kBf16, kF32, kGatedKept, kBf16Silu };
template <Store kStore>
constexpr bool kIsGated = kStore == Store::kGated || kStore == Store::kGatedKept;

constexpr int kTileW = 128;  // rows of w a block
constexpr int kUnit = 32;    // rows of x are padded to this
constexpr int kStepK = 64;   // inputs a stage
constexpr int kStages = 4;
constexpr int kConsumers = 2;           // warpgroups
constexpr int kBandBytes = 15'000'000;  // of x that tiles side by side read
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kBytesStaging = 8192;            // of a warpgroup, for sums on their way out
constexpr int kReleases = kConsumers * 4 * 2;  // warps of both blocks give a stage back

struct Tile {
  int expert, pair;  // pair: of neighbouring tiles of w
  int64_t row;       // the first row of x
  int rows, units;   // no units: there are no more tiles
};

constexpr int kBytesControl = kStages * (3 * 8 + static_cast<int>(sizeof(Tile)) + 4);

// int8 weights need registers that sums would take.
template <bool kInt8>
constexpr int kMostUnits = kInt8 ? 9 : kMaxUnits;
template <bool kInt8>
constexpr int kBytesW = kTileW* kStepK*(kInt8 ? 1 : 2);
template <bool kInt8>
constexpr int kBytesStage = kBytesW<kInt8> + kMostUnits<kInt8>* kUnit* kStepK * 2;
// bf16 weights take as much as the staging, which is where the last ones of a tile were.
template <bool kInt8>
constexpr int kSharedBytes = 1024 + kStages* kBytesStage<kInt8> +
                             (kInt8 ? kConsumers * kBytesStaging : 0) + kBytesControl;
static_assert(kBytesW<false> == kConsumers * kBytesStaging);
static_assert(kSharedBytes<false> <= 227 * 1024 && kSharedBytes<true> <= 227 * 1024);

// Tiles are made for 1, 2 and 4 to 10 units; int8 has no registers for 7.
template <bool kInt8>
__host__ __device__ constexpr int FitUnits(int units) {
  return units == 3 || (kInt8 && units == 7) ? units + 1 : units;
}

// All tiles, numbered. A group's tiles of x go side by side through the same weights, no more of
// them at a time than a band, which stays in the L2 cache.
template <bool kInt8>
class TileWalk {
 public:
  __device__ TileWalk(const GroupedGemmParams& p, int rows_w)
      : p_(p), pairs_((p.n + 2 * rows_w - 1) / (2 * rows_w)) {
    num_groups_ = p.groups ? *p.num_groups
                           : static_cast<int>((p.num_rows + kMaxGroupRows - 1) / kMaxGroupRows);
    if (num_groups_ > 0) Load();
  }

  // Tile `id`, which is larger than that of the call before; false if there are not so many.
  __device__ bool Find(int id, Tile& tile) {
    while (at_ < num_groups_ && id - first_ >= pairs_ * tiles_) {
      first_ += pairs_ * tiles_;
      if (++at_ < num_groups_) Load();
    }
    if (at_ >= num_groups_) return false;
    const int band = (id - first_) / (pairs_ * band_) * band_, width = min(band_, tiles_ - band);
    const int in_band = id - first_ - pairs_ * band, i = band + in_band % width;
    const int begin = BeginOf(i), end = BeginOf(i + 1);
    tile.pair = in_band / width;
    tile.expert = group_.expert;
    tile.row = group_.first + begin * kUnit;
    tile.rows = min((end - begin) * kUnit, group_.rows - begin * kUnit);
    tile.units = FitUnits<kInt8>(end - begin);
    return true;
  }

 private:
  __device__ void Load() {
    if (p_.groups) {
      group_ = p_.groups[at_];
    } else {
      const int64_t first = at_ * kMaxGroupRows;
      group_ = {0, static_cast<int>(min(p_.num_rows - first, kMaxGroupRows)), first};
    }
    units_ = (group_.rows + kUnit - 1) / kUnit;
    tiles_ = (units_ + 1) / 8;
    if (units_ > kMostUnits<kInt8> * tiles_) ++tiles_;
    const int most = max(kBandBytes / (8 * kUnit * 2 * p_.k), 1);
    const int num_bands = (tiles_ + most - 1) / most;
    band_ = (tiles_ + num_bands - 1) / num_bands;
  }

  // The first unit of the group's tile i. 8 units are cheapest a row, as the most that one
  // instruction takes; then the most that a tile takes. Fewer than 8 are of about the same size.
  __device__ int BeginOf(int i) const {
    const int beyond = units_ - 8 * tiles_;
    if (beyond >= 0) return 8 * i + min((kMostUnits<kInt8> - 8) * i, beyond);
    return i * (units_ / tiles_) + min(i, units_ % tiles_);
  }

  const GroupedGemmParams& p_;
  int pairs_;
  int num_groups_ = 0;
  int at_ = 0;     // the group
  int first_ = 0;  // the number of its first tile
  RowGroup group_;
  int units_ = 0, tiles_ = 1;  // of the group's rows
  int band_ = 1;               // tiles; the last band may have fewer
};

// Where in the ring of stages a warp is.
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct Shared {
  uint8_t* stages;
  uint64_t* full;
  uint64_t* empty;
  uint64_t* told;  // `next` has come
  Tile* tiles;     // of the stages that begin one
  int* next;       // in block 1, of the stages that begin a tile: its number
};

// The number of the cluster's next tile, which begins with the ring's stage. The stage must be
// empty: by then block 1 has read what it was told when this stage last began a tile.
__device__ __forceinline__ int TakeTile(const GroupedGemmParams& p, const Shared& s,
                                        const Ring& ring) {
  const int id = static_cast<int>(gridDim.x / 2) + atomicAdd(p.num_taken, 1);
  BarrierWait(&s.empty[ring.stage], ring.parity ^ 1);
  asm volatile(
      "{\n.reg .b32 to, barrier;\n"
      "mapa.shared::cluster.u32 to, %0, 1;\n"
      "mapa.shared::cluster.u32 barrier, %1, 1;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %2, [barrier];\n}\n" ::"r"(
          SharedAddress(&s.next[ring.stage])),
      "r"(SharedAddress(&s.told[ring.stage])), "r"(id)
      : "memory");
  return id;
}

// The same, in block 1. `parities`: bit i is that of stage i's barrier.
__device__ __forceinline__ int AwaitTile(const Shared& s, const Ring& ring, uint32_t& parities) {
  BarrierExpect(&s.told[ring.stage], 4);
  BarrierWait(&s.told[ring.stage], parities >> ring.stage & 1);
  parities ^= 1u << ring.stage;
  return s.next[ring.stage];
}

template <Store kStore, bool kInt8, bool kTransposed>
__device__ __forceinline__ void Produce(const GroupedGemmParams& p, const Shared& s, int rank) {
  constexpr int kRowsW = kIsGated<kStore> ? kTileW / 2 : kTileW;
  TileWalk<kInt8> walk(p, kRowsW);
  Ring ring;
  Tile tile;
  uint32_t parities = 0;
  int id = static_cast<int>(blockIdx.x / 2);
  while (walk.Find(id, tile)) {
    const int row_w = (2 * tile.pair + rank) * kRowsW;
    const int half = tile.units * kUnit / 2;
    const int row_x = static_cast<int>(tile.row) + rank * half;
    const uint32_t bytes = kBytesW<kInt8> + tile.units * kUnit * kStepK * 2;
    for (int k = 0; k < p.k; k += kStepK) {
      uint64_t* const full = &s.full[ring.stage];
      uint8_t* const w = s.stages + ring.stage * kBytesStage<kInt8>;
      BarrierWait(&s.empty[ring.stage], ring.parity ^ 1);
      if (k == 0) s.tiles[ring.stage] = tile;
      BarrierExpect(full, bytes);
      if constexpr (kIsGated<kStore>) {
        TmaLoad(w, &p.w, full, k, 0, 0, tile.expert * (p.expert_rows / 8) + row_w / 8);
      } else if constexpr (kTransposed) {
        const int row_k = tile.expert * p.expert_rows + k;
        TmaLoad(w, &p.w, full, row_w, row_k);
        TmaLoad(w + kBytesW<false> / 2, &p.w, full, row_w + kTileW / 2, row_k);
      } else {
        TmaLoad(w, &p.w, full, k, tile.expert * p.expert_rows + row_w);
      }
      TmaLoadMulticast(w + kBytesW<kInt8> + rank * half * kStepK * 2, &p.x[tile.units - 1], full, 3,
                       k, row_x);
      ring.Advance();
    }
    id = rank == 0 ? TakeTile(p, s, ring) : AwaitTile(s, ring, parities);
  }
  BarrierWait(&s.empty[ring.stage], ring.parity ^ 1);
  s.tiles[ring.stage].units = 0;
  BarrierArrive(&s.full[ring.stage]);
}

// The stage may be filled again, here and in the other block, as far as this warp goes.
__device__ __forceinline__ void Release(const Shared& s, int stage) {
  const uint32_t lane = threadIdx.x % 32;
  if (lane < 2) BarrierArriveRemote(&s.empty[stage], lane);
}

template <int kBegin, int kCount, int kAll>
__device__ __forceinline__ float (&Part(float (&v)[kAll]))[kCount] {
  static_assert(kBegin + kCount <= kAll);
  return *reinterpret_cast<float(*)[kCount]>(&v[kBegin]);
}

// Rows of x that the first of at most two instructions takes.
template <int kRows>
constexpr int kFirstRows = kRows <= 256 ? kRows : (kRows == 320 ? 160 : 192);

// sum += w x for 16 inputs. kTransW 1: w is [inputs][64].
template <int kRows, int kTransW>
__device__ __forceinline__ void MultiplySs(float (&sum)[kRows / 2], uint64_t w, uint64_t x) {
  constexpr int kFirst = kFirstRows<kRows>, kSecond = kRows - kFirst;
  WgmmaSs<kTransW, 0>(Part<0, kFirst / 2>(sum), w, x, 1);
  if constexpr (kSecond > 0) {
    WgmmaSs<kTransW, 0>(Part<kFirst / 2, kSecond / 2>(sum), w, x + (kFirst * kStepK * 2 >> 4), 1);
  }
}

template <int kRows>
__device__ __forceinline__ void MultiplyRs(float (&sum)[kRows / 2], const uint32_t (&w)[4],
                                           uint64_t x) {
  constexpr int kFirst = kFirstRows<kRows>, kSecond = kRows - kFirst;
  WgmmaRs<0>(Part<0, kFirst / 2>(sum), w, x, 1);
  if constexpr (kSecond > 0) {
    WgmmaRs<0>(Part<kFirst / 2, kSecond / 2>(sum), w, x + (kFirst * kStepK * 2 >> 4), 1);
  }
}

// The sums of a tile. Returns the last stage, which is still this warp's to release.
template <int kRows, bool kTransposed>
__device__ __forceinline__ int Multiply(const GroupedGemmParams& p, const Shared& s, Ring& ring,
                                        int consumer, float (&sum)[kRows / 2]) {
  const uint64_t w = WgmmaDescriptor(s.stages + consumer * 64 * kStepK * 2);
  const uint64_t x = WgmmaDescriptor(s.stages + kBytesW<false>);
  constexpr uint64_t kNextW = kTransposed ? 16 * 128 >> 4 : 2;  // 16 inputs further
  int last = -1;
  for (int k = 0; k < p.k; k += kStepK) {
    BarrierWait(&s.full[ring.stage], ring.parity);
    const uint64_t offset = static_cast<uint64_t>(ring.stage * (kBytesStage<false> >> 4));
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kStepK / 16; ++i) {
      MultiplySs<kRows, kTransposed ? 1 : 0>(sum, w + offset + kNextW * i, x + offset + 2 * i);
    }
    WgmmaCommit();
    WgmmaWait<1>();
    if (last >= 0) Release(s, last);
    last = ring.stage;
    ring.Advance();
  }
  WgmmaWait<0>();
  return last;
}

// The int8 weights of one warp's 16 rows, half a stage at a time, as wgmma's first operand.
class Int8Rows {
 public:
  static constexpr int kHalf = kStepK / 2;

  // `row`: where the thread's eight rows begin among those of all experts, for both eights.
  __device__ Int8Rows(const GroupedGemmParams& p, int64_t row, int64_t row_high)
      : log_group_(p.log_group), last_(static_cast<int>(p.num_scales) - 1) {
    const int64_t g = threadIdx.x % 32 / 4;
    scale_[0] = p.scales[0] + min(row + g, p.scale_rows - 1) * p.num_scales;
    scale_[1] = p.scales[1] + min(row_high + g, p.scale_rows - 1) * p.num_scales;
    Fetch(0);
  }

  // The 32 inputs from k on, half kSecond of the stage `w`; fetches the scales of the next 32.
  template <int kSecond>
  __device__ __forceinline__ void Decode(const uint8_t* w, int warp_row, int k,
                                         uint32_t (&a)[2][4]) {
    const int lane = threadIdx.x % 32;
    const int row = warp_row + lane % 16;
    // Rows of 64 bytes under the 64-byte swizzle: pieces of 16 are permuted by the row's half.
    const int piece = 2 * kSecond + lane / 16;
    uint32_t q[4];
    LoadMatrix(SharedAddress(w + row * 64 + ((piece ^ (row >> 1 & 3)) << 4)), q[0], q[1], q[2],
               q[3]);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t twice = next_[h] | next_[h] << 16;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        a[i][h] = ScaleInt8<0>(q[2 * i + h], twice);
        a[i][2 + h] = ScaleInt8<1>(q[2 * i + h], twice);
      }
    }
    Fetch(k + kHalf);
  }

 private:
  __device__ __forceinline__ void Fetch(int k) {
    const int at = min(k >> log_group_, last_);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      next_[h] = __ldg(reinterpret_cast<const unsigned short*>(scale_[h] + at));
    }
  }

  const bf16* scale_[2];
  int log_group_, last_;
  uint32_t next_[2];
};

template <int kRows>
__device__ __forceinline__ int MultiplyInt8(const GroupedGemmParams& p, const Shared& s, Ring& ring,
                                            int consumer, Int8Rows& rows, float (&sum)[kRows / 2]) {
  const uint64_t x = WgmmaDescriptor(s.stages + kBytesW<true>);
  const int warp_row = consumer * 64 + threadIdx.x % 128 / 32 * 16;
  const auto decode = [&]<int kSecond>(int k, uint32_t(&a)[2][4]) {
    if (kSecond == 0) BarrierWait(&s.full[ring.stage], ring.parity);
    rows.Decode<kSecond>(s.stages + ring.stage * kBytesStage<true>, warp_row,
                         k + kSecond * Int8Rows::kHalf, a);
  };
  const auto multiply = [&]<int kSecond>(const uint32_t(&a)[2][4]) {
    const uint64_t from =
        x + static_cast<uint64_t>(ring.stage * (kBytesStage<true> >> 4)) + 4 * kSecond;
    WgmmaFence();
    MultiplyRs<kRows>(sum, a[0], from);
    MultiplyRs<kRows>(sum, a[1], from + 2);
    WgmmaCommit();
  };
  int last = -1;
  if constexpr (kRows > 256) {
    // There are registers for one half only: this warpgroup decodes while the other multiplies.
    uint32_t a[2][4];
    for (int k = 0; k < p.k; k += kStepK) {
      decode.template operator()<0>(k, a);
      multiply.template operator()<0>(a);
      WgmmaWait<0>();
      decode.template operator()<1>(k, a);
      multiply.template operator()<1>(a);
      WgmmaWait<0>();
      last = ring.stage;
      if (k + kStepK < p.k) Release(s, last);
      ring.Advance();
    }
  } else {
    // One half is multiplied while the other is decoded.
    uint32_t first[2][4], second[2][4];
    decode.template operator()<0>(0, first);
    for (int k = 0; k < p.k; k += kStepK) {
      multiply.template operator()<0>(first);
      WgmmaWait<1>();
      if (last >= 0) Release(s, last);
      decode.template operator()<1>(k, second);
      multiply.template operator()<1>(second);
      WgmmaWait<1>();
      last = ring.stage;
      ring.Advance();
      if (k + kStepK < p.k) decode.template operator()<0>(k + kStepK, first);
    }
    WgmmaWait<0>();
  }
  return last;
}

// x / (1 + exp(-x)) by the hardware's exponential and reciprocal; numbers below the normal ones are
// zero.
__device__ __forceinline__ float Silu(float x) {
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -1.442695041f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + e));
  return x * r;
}

// Of a warpgroup. Hidden from the compiler, which else works out the addresses of every tile size
// ahead of the sums and has no registers left for these.
__device__ __forceinline__ int ThreadOfTile() {
  int thread = threadIdx.x % 128;
  asm volatile("" : "+r"(thread));
  return thread;
}

__device__ __forceinline__ void SyncWarpgroup(int consumer) {
  NamedBarrierSync(1 + consumer, 128);
}

// Eight columns from `n` on of a row, if they are inside. Columns come in eights.
__device__ __forceinline__ void StoreEight(const GroupedGemmParams& p, int64_t row, int n,
                                           const uint4& v) {
  if (n >= p.n) return;
  *reinterpret_cast<uint4*>(static_cast<bf16*>(p.out) + row * p.out_stride + n) = v;
}

// Two eights side by side, in PairOrder.
__device__ __forceinline__ void StoreInPairOrder(const GroupedGemmParams& p, int64_t row, int n,
                                                 const uint4& a, const uint4& b) {
  StoreEight(p, row, n, make_uint4(a.x, a.z, b.x, b.z));
  StoreEight(p, row, n + 8, make_uint4(a.y, a.w, b.y, b.w));
}

// SiLU(gate) * up: a warpgroup's 32 outputs of 128 rows at a time go through shared memory,
// [row][32], where the pieces of 16 bytes are permuted so that neither side meets a bank twice.
template <int kRows>
__device__ __forceinline__ void StoreGated(const GroupedGemmParams& p, uint8_t* staging,
                                           const Tile& tile, int first_n, int consumer,
                                           float (&sum)[kRows / 2]) {
  const int thread = ThreadOfTile(), warp = thread / 32, lane = thread % 32;
  const auto piece_of = [&](int row, int piece) {
    return staging + row * 64 + ((piece ^ (row >> 1 & 3)) << 4);
  };
#pragma unroll
  for (int begin = 0; begin < kRows; begin += 128) {
    SyncWarpgroup(consumer);  // what was there has been read
#pragma unroll
    for (int j = begin / 8; j < begin / 8 + 16; j += 4) {
      if (8 * j >= kRows) continue;
      uint32_t h[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const d = &sum[4 * (j + i)];
        const float2 low{d[0], d[1]}, high{d[2], d[3]};
        const float2 gate = p.up_first ? high : low, up = p.up_first ? low : high;
        h[i] = PackBf16(Silu(gate.x) * up.x, Silu(gate.y) * up.y);
      }
      StoreMatrixTransposed(SharedAddress(piece_of(8 * j - begin + lane, warp)), h[0], h[1], h[2],
                            h[3]);
    }
    SyncWarpgroup(consumer);
    const int rows = min(tile.rows - begin, 128), n = first_n + 32 * consumer;
    const int64_t first = tile.row + begin;
    if (p.pair_order) {
      for (int at = thread; at < rows * 2; at += 128) {
        const int row = at / 2, piece = at % 2 * 2;
        StoreInPairOrder(p, first + row, n + 8 * piece,
                         *reinterpret_cast<const uint4*>(piece_of(row, piece)),
                         *reinterpret_cast<const uint4*>(piece_of(row, piece + 1)));
      }
    } else {
      for (int at = thread; at < rows * 4; at += 128) {
        StoreEight(p, first + at / 4, n + at % 4 * 8,
                   *reinterpret_cast<const uint4*>(piece_of(at / 4, at % 4)));
      }
    }
  }
}

// A pair of bf16 of each: SiLU(gate) * up.
__device__ __forceinline__ uint32_t SwiGluPair(uint32_t gate, uint32_t up) {
  const auto low = [](uint32_t pair) { return __uint_as_float(pair << 16); };
  const auto high = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
  return PackBf16(Silu(low(gate)) * low(up), Silu(high(gate)) * high(up));
}

// Both sums and SiLU(gate) * up of them, one after another by the way of StoreGated.
template <int kRows>
struct KeptTile {
  const GroupedGemmParams& p;
  uint8_t* staging;
  const Tile& tile;
  int n, consumer, thread;  // n: the warpgroup's first output
  const float (&sum)[kRows / 2];

  __device__ __forceinline__ uint8_t* Piece(int row, int piece) const {
    return staging + row * 64 + ((piece ^ (row >> 1 & 3)) << 4);
  }

  // value(gate, up), pairs of bf16, of the 128 rows from `begin` on.
  template <typename F>
  __device__ __forceinline__ void StoreRows(int begin, bf16* to, int64_t stride, F&& value) const {
    SyncWarpgroup(consumer);  // what was there has been read
#pragma unroll
    for (int j = begin / 8; j < begin / 8 + 16; j += 4) {
      if (8 * j >= kRows) continue;
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const d = &sum[4 * (j + i)];
        const uint32_t low = PackBf16(d[0], d[1]), high = PackBf16(d[2], d[3]);
        v[i] = p.up_first ? value(high, low) : value(low, high);
      }
      StoreMatrixTransposed(SharedAddress(Piece(8 * j - begin + thread % 32, thread / 32)), v[0],
                            v[1], v[2], v[3]);
    }
    SyncWarpgroup(consumer);
    const int rows = min(tile.rows - begin, 128);
    for (int at = thread; at < rows * 4; at += 128) {
      const int row = at / 4, column = n + at % 4 * 8;
      if (column >= p.n) continue;
      *reinterpret_cast<uint4*>(to + (tile.row + begin + row) * stride + column) =
          *reinterpret_cast<const uint4*>(Piece(row, at % 4));
    }
  }

  __device__ __forceinline__ void StoreAll() const {
#pragma unroll
    for (int begin = 0; begin < kRows; begin += 128) {
      StoreRows(begin, p.products, p.products_stride, [](uint32_t gate, uint32_t) { return gate; });
      StoreRows(begin, p.products + p.n, p.products_stride,
                [](uint32_t, uint32_t up) { return up; });
      StoreRows(begin, static_cast<bf16*>(p.out), p.out_stride, SwiGluPair);
    }
  }
};

// SiLU of eight bf16.
__device__ __forceinline__ uint4 SiluEight(const uint4& v) {
  const auto silu = [](uint32_t pair) {
    return PackBf16(Silu(__uint_as_float(pair << 16)), Silu(__uint_as_float(pair & 0xffff0000u)));
  };
  return make_uint4(silu(v.x), silu(v.y), silu(v.z), silu(v.w));
}

// A warpgroup's 64 outputs of 64 rows at a time, [row][64] under the 128-byte swizzle.
template <int kRows, bool kSilu>
__device__ __forceinline__ void StoreBf16(const GroupedGemmParams& p, uint8_t* staging,
                                          const Tile& tile, int first_n, int consumer,
                                          float (&sum)[kRows / 2]) {
  const int thread = ThreadOfTile(), warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int begin = 0; begin < kRows; begin += 64) {
    SyncWarpgroup(consumer);  // what was there has been read
#pragma unroll
    for (int j = begin / 8; j < begin / 8 + 8; j += 2) {
      if (8 * j >= kRows) continue;
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = PackBf16(sum[4 * j + 2 * i], sum[4 * j + 2 * i + 1]);
      const int row = 8 * j - begin + lane / 16 * 8 + lane % 8;
      const int piece = 2 * warp + lane / 8 % 2;
      StoreMatrixTransposed(SharedAddress(staging) + Swizzle128(row, piece * 16), v[0], v[1], v[2],
                            v[3]);
    }
    SyncWarpgroup(consumer);
    const int rows = min(tile.rows - begin, 64);
    for (int at = thread; at < rows * 8; at += 128) {
      const int row = at / 8, piece = at % 8, n = first_n + 64 * consumer + 8 * piece;
      const uint4 v = *reinterpret_cast<const uint4*>(staging + Swizzle128(row, piece * 16));
      StoreEight(p, tile.row + begin + row, n, v);
      if constexpr (kSilu) {
        if (n >= p.silu_columns) continue;
        *reinterpret_cast<uint4*>(p.silu_out + (tile.row + begin + row) * p.silu_stride + n) =
            SiluEight(v);
      }
    }
  }
}

template <int kRows>
__device__ __forceinline__ void StoreF32(const GroupedGemmParams& p, const Tile& tile, int first_n,
                                         int consumer, float (&sum)[kRows / 2]) {
  const int thread = ThreadOfTile(), lane = thread % 32;
  const int n = first_n + 64 * consumer + thread / 32 * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 8 * j + lane % 4 * 2 + i % 2, column = n + i / 2 * 8;
      if (row < tile.rows && column < p.n) {
        static_cast<float*>(p.out)[(tile.row + row) * p.out_stride + column] = sum[4 * j + i];
      }
    }
  }
}

template <Store kStore, bool kInt8, bool kTransposed, int kRows>
__device__ __forceinline__ void ConsumeTile(const GroupedGemmParams& p, const Shared& s, Ring& ring,
                                            const Tile& tile, int rank, int consumer) {
  constexpr int kRowsW = kIsGated<kStore> ? kTileW / 2 : kTileW;
  const int first_n = (2 * tile.pair + rank) * kRowsW;
  float sum[kRows / 2];
#pragma unroll
  for (float& v : sum) v = 0.0f;
  int last;
  if constexpr (kInt8) {
    const int warp = threadIdx.x % 128 / 32;
    const int64_t first = static_cast<int64_t>(tile.expert) * p.n + first_n;
    constexpr bool kGated = kStore == Store::kGated;
    const int64_t row = first + (consumer * 4 + warp) * (kGated ? 8 : 16);
    Int8Rows rows(p, row, kGated ? row : row + 8);
    last = MultiplyInt8<kRows>(p, s, ring, consumer, rows, sum);
  } else {
    last = Multiply<kRows, kTransposed>(p, s, ring, consumer, sum);
  }
  // The last weights that this warpgroup alone has read make room for its sums.
  uint8_t* const staging =
      s.stages + (kInt8 ? kStages : last) * kBytesStage<kInt8> + consumer * kBytesStaging;
  WgmmaHold(sum);
  if constexpr (!kIsGated<kStore> && !kInt8) {
    if (p.silu) {
#pragma unroll
      for (float& v : sum) v = Silu(v);
    }
  }
  if constexpr (kStore == Store::kGated) {
    StoreGated<kRows>(p, staging, tile, first_n, consumer, sum);
  } else if constexpr (kStore == Store::kGatedKept) {
    KeptTile<kRows>{p, staging, tile, first_n + 32 * consumer, consumer, ThreadOfTile(), sum}
        .StoreAll();
  } else if constexpr (kStore == Store::kBf16 || kStore == Store::kBf16Silu) {
    StoreBf16<kRows, kStore == Store::kBf16Silu>(p, staging, tile, first_n, consumer, sum);
  } else {
    StoreF32<kRows>(p, tile, first_n, consumer, sum);
  }
  ProxyFence();
  __syncwarp();
  Release(s, last);
}

// ConsumeTile for the tile's number of units, one of those that FitUnits gives.
template <Store kStore, bool kInt8, bool kTransposed, int kUnits = kMostUnits<kInt8>>
__device__ __forceinline__ void ConsumeUnits(const GroupedGemmParams& p, const Shared& s,
                                             Ring& ring, const Tile& tile, int rank, int consumer) {
  if (tile.units == kUnits) {
    ConsumeTile<kStore, kInt8, kTransposed, kUnits * kUnit>(p, s, ring, tile, rank, consumer);
  } else if constexpr (kUnits > 1) {
    constexpr int kNext = FitUnits<kInt8>(kUnits - 1) == kUnits - 1 ? kUnits - 1 : kUnits - 2;
    ConsumeUnits<kStore, kInt8, kTransposed, kNext>(p, s, ring, tile, rank, consumer);
  }
}

template <Store kStore, bool kInt8, bool kTransposed>
__device__ __forceinline__ void Consume(const GroupedGemmParams& p, const Shared& s, int rank,
                                        int consumer) {
  Ring ring;
  for (;;) {
    BarrierWait(&s.full[ring.stage], ring.parity);
    const Tile tile = s.tiles[ring.stage];
    if (tile.units == 0) return;
    ConsumeUnits<kStore, kInt8, kTransposed>(p, s, ring, tile, rank, consumer);
  }
}

template <Store kStore, bool kInt8, bool kTransposed>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    GemmKernel(const __grid_constant__ GroupedGemmParams p) {
  extern __shared__ uint8_t memory[];
  const uint32_t skip = (1024 - SharedAddress(memory) % 1024) % 1024;
  uint8_t* const stages = memory + skip;
  uint64_t* const barriers =
      reinterpret_cast<uint64_t*>(memory + kSharedBytes<kInt8> - kBytesControl);
  const int warpgroup = threadIdx.x / 128;
  Tile* const tiles = reinterpret_cast<Tile*>(barriers + 3 * kStages);
  const Shared s{.stages = stages,
                 .full = barriers,
                 .empty = barriers + kStages,
                 .told = barriers + 2 * kStages,
                 .tiles = tiles,
                 .next = reinterpret_cast<int*>(tiles + kStages)};
  const int rank = static_cast<int>(ClusterRank());
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&s.full[i], 1);
      BarrierInit(&s.empty[i], kReleases);
      BarrierInit(&s.told[i], 1);
    }
    BarrierInitFence();
  }
  ClusterSync();
  if (warpgroup == 0) {
    RegistersDown<40>();
    if (threadIdx.x == 0) Produce<kStore, kInt8, kTransposed>(p, s, rank);
    __syncwarp();
  } else {
    RegistersUp<232>();
    Consume<kStore, kInt8, kTransposed>(p, s, rank, warpgroup - 1);
  }
  ClusterSync();  // the other block may still send here
}

template <Store kStore, bool kInt8, bool kTransposed = false>
void LaunchGemm(Queue& queue, const GroupedGemmParams& p, int64_t num_tiles) {
  constexpr int kBytes = kSharedBytes<kInt8>;
  static const bool enlarged = [] {
    CheckCuda(cudaFuncSetAttribute(GemmKernel<kStore, kInt8, kTransposed>,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return true;
  }();
  static_cast<void>(enlarged);
  const int64_t clusters = std::min<int64_t>(num_tiles, Multiprocessors() / 2);
  GemmKernel<kStore, kInt8, kTransposed>
      <<<static_cast<unsigned>(2 * clusters), kThreads, kBytes, queue.stream()>>>(p);
  CheckLaunch();
}

}  // namespace
}  // namespace mm01::cuda
