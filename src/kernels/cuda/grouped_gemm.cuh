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
#include "kernels/cuda/decode_int8.cuh"
#include "kernels/cuda/grouped_gemm_store.cuh"
#include "kernels/cuda/grouped_gemm_tiles.cuh"
#include "kernels/cuda/wgmma_wide.cuh"

namespace mm01::cuda {
namespace {

using Ring = StageRing<kStages>;

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
      ring.Next();
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
    ring.Next();
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
      ring.Next();
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
      ring.Next();
      if (k + kStepK < p.k) decode.template operator()<0>(k + kStepK, first);
    }
    WgmmaWait<0>();
  }
  return last;
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
  WgmmaHold(sum);
  if constexpr (!kIsGated<kStore> && !kInt8) {
    if (p.silu) {
#pragma unroll
      for (float& v : sum) v = Silu(v);
    }
  }
  uint8_t* const stage = s.stages + last * kBytesStage<kInt8>;
  uint8_t* const weights =
      (kInt8 ? s.stages + kStages * kBytesStage<kInt8> : stage) + consumer * kBytesStaging;
  uint8_t* const half_of_x = stage + kBytesW<kInt8> + consumer * (kBytesX<kInt8> / kConsumers);
  if constexpr (kStore == Store::kF32) {
    StoreF32<kRows>(p, tile, first_n + 64 * consumer, sum);
  } else {
    Outbox<kIsGated<kStore> ? 32 : 64, !kInt8> box(weights, half_of_x, consumer);
    if constexpr (kIsGated<kStore>) {
      StoreGated<kRows, kStore == Store::kGatedKept>(p, box, tile, first_n + 32 * consumer, sum);
    } else {
      StoreBf16<kRows, kStore == Store::kBf16Silu>(p, box, tile, first_n + 64 * consumer, sum);
    }
    box.Close();
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
  // Who asks for more than the block was launched with waits forever.
  constexpr int kOfProducer = 40, kOfConsumer = 232, kLaunched = 65536 / kThreads / 8 * 8;
  static_assert(kOfProducer + kConsumers * kOfConsumer <= (1 + kConsumers) * kLaunched);
  if (warpgroup == 0) {
    RegistersDown<kOfProducer>();
    if (threadIdx.x == 0) Produce<kStore, kInt8, kTransposed>(p, s, rank);
    __syncwarp();
  } else {
    RegistersUp<kOfConsumer>();
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
