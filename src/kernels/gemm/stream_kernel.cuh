// The kernel behind stream.cuh.
//
// Weights pass once through a ring of shared memory into the tensor cores; rows of x lie still.
//
// A cluster of eight blocks takes up to 64 rows of x and, one after another, tiles of 64 rows of w.
// Block c multiplies what chain c has of the inputs: its part of x is in its shared memory from the
// beginning to the end, so x costs the second-level cache one read a block, and w is all that
// streams. Then the eight sums of a tile meet, each block adding up 8 of the 64 rows.
//
//   warpgroups 0, 1   every second tile each: w is the first operand of wgmma (M = 64), rows of x
//                     the second (N = 8, 32 or 64), sums in registers
//   warps 8, 9        one thread keeps the stages of warpgroup 0 or 1 full
//   warp 10           brings x (bf16) or the scales (int8)
//
// int8 weights become bf16 in registers, the operand's layout, in which a lane takes inputs 2t,
// 2t + 1, 2t + 8 and 2t + 9 of 16. Four neighbouring bytes are at hand instead, so x is laid down
// with its pairs in the order 0 2 4 6 1 3 5 7.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/decode_int8.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/gemm/stream.cuh"
#include "kernels/gemm/wgmma_narrow.cuh"

namespace mm01::cuda {
namespace {

constexpr int kConsumers = 2;  // warpgroups that multiply
constexpr int kConsumerThreads = 128 * kConsumers;
constexpr int kThreads = kConsumerThreads + 32 * (kConsumers + 1);
constexpr int kChains = 8;     // blocks of a cluster
constexpr int kTileRows = 64;  // of w
constexpr int kSumRows = kTileRows / kChains;
constexpr int kStep = 128;  // inputs
constexpr int kStageBytes = kTileRows * 128;
constexpr int kMostStages = 16, kFewestStages = 4;
constexpr int kMostSteps = static_cast<int>(kMostStreamInputs / kStep / kChains);  // of a chain
constexpr int kConsumersBarrier = 1 + kConsumers;  // 1 and 2 are the warpgroups' own

struct StreamParams {
  CUtensorMap w[kMostStreamProducts];
  CUtensorMap x;  // for bf16 weights
  StreamArgs args;
  int num_steps;     // of k
  int chain_steps;   // the most of one chain
  int num_tiles;     // of all products
  int token_blocks;  // that x is cut into
  int num_stages;
};

struct Barriers {
  uint64_t full[kMostStages], empty[kMostStages];
  uint64_t x[kMostSteps];
  uint64_t inbox_full[kConsumers], inbox_empty[kConsumers];
  uint64_t scales_full[kConsumers], scales_empty[kConsumers];
};

// Groups of int8 weights in a step.
__host__ __device__ constexpr int GroupsOfStep(int group) {
  return group > 0 ? kStep / group : 0;
}

// Floats from a row of sums to the next: rows and neighbouring tokens fall into different banks.
__host__ __device__ constexpr int SumPitch(int tokens) {
  return tokens + 4;
}

// ---- instructions

__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same place in the shared memory of block `rank`.
__device__ __forceinline__ uint32_t AddressInCluster(const void* p, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(SharedAddress(p)), "r"(rank));
  return address;
}
// Two floats to another block, which its barrier counts as 8 bytes that have come.
__device__ __forceinline__ void StoreAsync(uint32_t to, float a, float b, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
          to),
      "r"(__float_as_uint(a)), "r"(__float_as_uint(b)), "r"(barrier)
      : "memory");
}

// ---- the roles

// The stages of one warpgroup: every second one.
struct Ring {
  int first, end, stage;
  uint32_t parity = 0;

  __device__ Ring(int consumer, int num_stages)
      : first(consumer), end(num_stages), stage(consumer) {}
  __device__ void Advance() {
    stage += kConsumers;
    if (stage >= end) {
      stage = first;
      parity ^= 1;
    }
  }
};

template <int kGroup, int kTokens>
class Block {
 public:
  __device__ Block(const StreamParams& params, uint8_t* memory)
      : p_(params), s_(params.args), rank_(static_cast<int>(ClusterRank())) {
    const int cluster = static_cast<int>(blockIdx.x) / kChains;
    const int num_clusters = static_cast<int>(gridDim.x) / kChains;
    first_tile_ = cluster / p_.token_blocks;
    stride_ = num_clusters / p_.token_blocks;
    first_token_ = cluster % p_.token_blocks * kTokens;
    tokens_ = min(kTokens, s_.m - first_token_);
    steps_ = (p_.num_steps - rank_ + kChains - 1) / kChains;
    ring_ = memory + (1024 - SharedAddress(memory) % 1024) % 1024;
    x_ = ring_ + p_.num_stages * kStageBytes;
    inbox_ = reinterpret_cast<float*>(x_ + p_.chain_steps * 2 * kHalfBytes);
    barriers_ = reinterpret_cast<Barriers*>(inbox_ + kConsumers * kTileRows * kPitch);
    scales_ = reinterpret_cast<uint16_t*>(barriers_ + 1);
  }

  __device__ void InitBarriers() {
    const int i = static_cast<int>(threadIdx.x);
    if (i < kMostStages) {
      BarrierInit(&barriers_->full[i], 1);
      BarrierInit(&barriers_->empty[i], 4);
    }
    if (i < kMostSteps) BarrierInit(&barriers_->x[i], 1);
    if (i < kConsumers) {
      BarrierInit(&barriers_->inbox_full[i], 1);
      BarrierInit(&barriers_->inbox_empty[i], kChains);
      BarrierInit(&barriers_->scales_full[i], 32);
      BarrierInit(&barriers_->scales_empty[i], 4);
    }
    BarrierInitFence();
  }

  // One thread.
  __device__ void FetchWeights(int consumer) {
    Ring ring(consumer, p_.num_stages);
    for (int at = first_tile_ + consumer * stride_; at < p_.num_tiles; at += kConsumers * stride_) {
      const Tile tile = TileAt(at);
      for (int i = 0; i < steps_; ++i) {
#pragma unroll
        for (int half = 0; half < kStagesAStep; ++half) {
          uint64_t* const full = &barriers_->full[ring.stage];
          BarrierWait(&barriers_->empty[ring.stage], ring.parity ^ 1);
          BarrierExpect(full, kStageBytes);
          TmaLoad(ring_ + ring.stage * kStageBytes, &p_.w[tile.product], full,
                  FirstInput(i) + half * 64, tile.row);
          ring.Advance();
        }
      }
    }
  }

  // One thread.
  __device__ void FetchX() {
    AwaitEarlierKernels();
    for (int i = 0; i < steps_; ++i) {
      BarrierExpect(&barriers_->x[i], 2 * kHalfBytes);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        TmaLoad(x_ + (2 * i + half) * kHalfBytes, &p_.x, &barriers_->x[i],
                FirstInput(i) + half * 64, first_token_);
      }
    }
  }

  // One warp; a lane takes two rows of a tile.
  __device__ void FetchScales() {
    const int lane = threadIdx.x % 32;
    for (int i = 0, at = first_tile_; at < p_.num_tiles; at += stride_, ++i) {
      const int consumer = i % kConsumers, round = i / kConsumers;
      const Tile tile = TileAt(at);
      const StreamProduct& product = s_.product[tile.product];
      const bf16* row[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t n = min(tile.row + 32 * h + lane, product.n - 1);
        row[h] = product.scales + n * s_.num_groups;
      }
      int first = 0;
      do {
        uint16_t scale[kScaleBatch][2];
        LoadScales(row, first, scale);
        // What has been asked for comes while the tile before is multiplied.
        if (first == 0) BarrierWait(&barriers_->scales_empty[consumer], (round & 1) ^ 1);
#pragma unroll
        for (int j = 0; j < kScaleBatch; ++j) {
          if (first + j >= steps_ * kGroups) break;
          uint16_t* const to = Scales(consumer) + (first + j) * kTileRows + lane;
          to[0] = scale[j][0], to[32] = scale[j][1];
        }
        first += kScaleBatch;
      } while (first < steps_ * kGroups);
      BarrierArrive(&barriers_->scales_full[consumer]);
    }
  }

  // A warpgroup.
  __device__ void Consume(int consumer) {
    AwaitEarlierKernels();
    AllowNextKernel();  // which may then read what no kernel but this still writes
    if constexpr (kInt8) {
      LayDownX();
      ProxyFence();
      NamedBarrierSync<kConsumersBarrier, kConsumerThreads>();
    }
    ClusterWait();  // the barriers of the other blocks are ready
    Ring ring(consumer, p_.num_stages);
    uint32_t round = 0;
    for (int at = first_tile_ + consumer * stride_; at < p_.num_tiles; at += kConsumers * stride_) {
      float sum[kTokens / 2] = {};
      if constexpr (kInt8) {
        BarrierWait(&barriers_->scales_full[consumer], round & 1);
        MultiplyInt8(consumer, ring, sum);
        Release(&barriers_->scales_empty[consumer]);
      } else {
        MultiplyBf16(ring, round == 0, sum);
      }
      Send(consumer, round, sum);
      Finish(consumer, round, TileAt(at));
      ++round;
    }
  }

 private:
  static constexpr bool kInt8 = kGroup > 0;
  [[maybe_unused]] static constexpr int kGroups = GroupsOfStep(kGroup);
  static constexpr int kScaleBatch = 8;
  static constexpr int kStagesAStep = kInt8 ? 1 : 2;
  static constexpr int kHalfBytes = kTokens * 128;  // of x, for 64 inputs
  static constexpr int kPitch = SumPitch(kTokens);

  struct Tile {
    int product, row;
  };

  __device__ __forceinline__ Tile TileAt(int at) const {
    int i = 0;
    while (i + 1 < s_.num_products && at >= s_.product[i + 1].first_tile) ++i;
    return {i, (at - s_.product[i].first_tile) * kTileRows};
  }
  // Of the chain's step i.
  __device__ __forceinline__ int FirstInput(int i) const {
    return (rank_ + i * kChains) * kStep;
  }
  // Sums of this block's rows of a tile, [chain][row][token].
  __device__ __forceinline__ float* Inbox(int consumer) const {
    return inbox_ + consumer * kTileRows * kPitch;
  }
  // Of a tile's rows, [group of the chain][row].
  __device__ __forceinline__ uint16_t* Scales(int consumer) const {
    return scales_ + consumer * p_.chain_steps * kGroups * kTileRows;
  }
  __device__ __forceinline__ void Release(uint64_t* empty) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) BarrierArrive(empty);
  }

  // Of the chain's groups first, first + 1, ...
  __device__ __forceinline__ void LoadScales(const bf16* const (&row)[2], int first,
                                             uint16_t (&scale)[kScaleBatch][2]) const {
#pragma unroll
    for (int j = 0; j < kScaleBatch; ++j) {
      const int step = rank_ + (first + j) / kGroups * kChains;
      const int group = step * kGroups + (first + j) % kGroups;
      const bool inside = first + j < steps_ * kGroups && group < s_.num_groups;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        scale[j][h] = 0;
        if (inside) scale[j][h] = __ldg(reinterpret_cast<const unsigned short*>(row[h] + group));
      }
    }
  }

  // x as TMA would lay it down, but for the order of pairs. All consumers; a thread takes 16 inputs
  // at a time.
  __device__ __forceinline__ void LayDownX() {
    constexpr int kBatch = kTokens == 8 ? 2 : 6;
    constexpr int kPieces = kStep / 16;
    const int count = steps_ * kTokens * kPieces;
    for (int first = threadIdx.x; first < count; first += kConsumerThreads * kBatch) {
      uint4 v[kBatch][2];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int at = first + j * kConsumerThreads;
        const int piece = at % kPieces, token = at / kPieces % kTokens;
        const int input = FirstInput(at / kPieces / kTokens) + piece * 16;
        v[j][0] = v[j][1] = {};
        if (at < count && token < tokens_ && input < s_.k) {
          const uint4* const from =
              reinterpret_cast<const uint4*>(s_.x + (first_token_ + token) * s_.ldx + input);
          v[j][0] = from[0], v[j][1] = from[1];
        }
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int at = first + j * kConsumerThreads;
        if (at >= count) break;
        const int piece = at % kPieces, token = at / kPieces % kTokens;
        const int half = at / kPieces / kTokens * 2 + piece / 4;
        uint8_t* const to = x_ + half * kHalfBytes;
        const uint4 a = v[j][0], b = v[j][1];
        *reinterpret_cast<uint4*>(to + Swizzle128(token, piece % 4 * 32)) =
            make_uint4(a.x, a.z, b.x, b.z);
        *reinterpret_cast<uint4*>(to + Swizzle128(token, piece % 4 * 32 + 16)) =
            make_uint4(a.y, a.w, b.y, b.w);
      }
    }
  }

  __device__ __forceinline__ void MultiplyBf16(Ring& ring, bool first, float (&sum)[kTokens / 2]) {
    const uint64_t w = WgmmaDescriptor(ring_), x = WgmmaDescriptor(x_);
    int last = -1;
    for (int i = 0; i < 2 * steps_; ++i) {
      if (first) BarrierWait(&barriers_->x[i / 2], 0);
      BarrierWait(&barriers_->full[ring.stage], ring.parity);
      const uint64_t w_half = w + static_cast<uint64_t>(ring.stage * (kStageBytes >> 4));
      const uint64_t x_half = x + static_cast<uint64_t>(i * (kHalfBytes >> 4));
      WgmmaFence();
#pragma unroll
      for (int j = 0; j < 4; ++j) WgmmaSs<0, 0>(sum, w_half + 2 * j, x_half + 2 * j, 1);
      WgmmaCommit();
      WgmmaWait<1>();
      if (last >= 0) Release(&barriers_->empty[last]);
      last = ring.stage;
      ring.Advance();
    }
    WgmmaWait<0>();
    WgmmaHold(sum);
    if (last >= 0) Release(&barriers_->empty[last]);
  }

  // The warp's 16 rows of a stage, 16 inputs after 16, as the first operand.
  __device__ __forceinline__ void DecodeStage(const uint8_t* stage,
                                              uint32_t (&w)[kStep / 16][4]) const {
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (int j = 0; j < kStep / 32; ++j) {
      uint32_t q[4];  // rows g and g + 8 of 16 inputs, and of the next 16
      LoadMatrix(SharedAddress(stage) + Swizzle128(row, (2 * j + lane / 16) * 16), q[0], q[1], q[2],
                 q[3]);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        w[2 * j + h][0] = DecodeInt8<0>(q[2 * h]);
        w[2 * j + h][1] = DecodeInt8<0>(q[2 * h + 1]);
        w[2 * j + h][2] = DecodeInt8<1>(q[2 * h]);
        w[2 * j + h][3] = DecodeInt8<1>(q[2 * h + 1]);
      }
    }
  }

  __device__ __forceinline__ void MultiplyInt8(int consumer, Ring& ring,
                                               float (&sum)[kTokens / 2]) {
    const uint64_t x = WgmmaDescriptor(x_);
    const int warp = threadIdx.x % 128 / 32, g = threadIdx.x % 32 / 4;
    const uint16_t* scale = Scales(consumer) + warp * 16 + g;
    float part[kTokens / 2] = {};
    for (int i = 0; i < steps_; ++i) {
      BarrierWait(&barriers_->full[ring.stage], ring.parity);
      uint32_t w[kStep / 16][4];
      DecodeStage(ring_ + ring.stage * kStageBytes, w);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        constexpr int kPieces = kGroup / 16;
        WgmmaFence();
#pragma unroll
        for (int j = group * kPieces; j < (group + 1) * kPieces; ++j) {
          const int half = 2 * i + j / 4;
          WgmmaRs<0>(part, w[j], x + static_cast<uint64_t>(half * (kHalfBytes >> 4) + j % 4 * 2),
                     j > group * kPieces);
        }
        WgmmaCommit();
        const float by[2] = {__uint_as_float(static_cast<uint32_t>(scale[0]) << 16),
                             __uint_as_float(static_cast<uint32_t>(scale[8]) << 16)};
        scale += kTileRows;
        WgmmaWait<0>();
        WgmmaHold(part);
#pragma unroll
        for (int c = 0; c < kTokens / 2; ++c) sum[c] = fmaf(part[c], by[c / 2 % 2], sum[c]);
      }
      // Not right behind ldmatrix: an arrival overtakes it, and the copy that waits for the stage
      // overwrites what is still to be read.
      Release(&barriers_->empty[ring.stage]);
      ring.Advance();
    }
  }

  // A warp has 16 rows of the tile, eight for each of two blocks.
  __device__ __forceinline__ void Send(int consumer, uint32_t round,
                                       const float (&sum)[kTokens / 2]) {
    const int thread = threadIdx.x % 128, warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
    BarrierWait(&barriers_->inbox_empty[consumer], (round & 1) ^ 1);
    uint64_t* const full = &barriers_->inbox_full[consumer];
    if (thread == 0) BarrierExpect(full, kTileRows * kTokens * sizeof(float));
    float* const mine = Inbox(consumer) + (rank_ * kSumRows + g) * kPitch + 2 * t;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t to = AddressInCluster(mine, 2 * warp + h);
      const uint32_t barrier = AddressInCluster(full, 2 * warp + h);
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
        StoreAsync(to + j * 32, sum[4 * j + 2 * h], sum[4 * j + 2 * h + 1], barrier);
      }
    }
  }

  __device__ __forceinline__ void Finish(int consumer, uint32_t round, const Tile& tile) {
    const int thread = threadIdx.x % 128;
    const StreamProduct& product = s_.product[tile.product];
    const int row = thread % kSumRows, n = tile.row + rank_ * kSumRows + row;
    BarrierWait(&barriers_->inbox_full[consumer], round & 1);
    if (n < product.n) {
      for (int token = thread / kSumRows; token < tokens_; token += 128 / kSumRows) {
        const float* const chain = Inbox(consumer) + row * kPitch + token;
        float sum = chain[0];
#pragma unroll
        for (int c = 1; c < kChains; ++c) sum += chain[c * kSumRows * kPitch];
        if (product.silu) sum *= Sigmoid(sum);
        const int64_t out = (first_token_ + token) * product.ldo + n;
        if (product.bf16_out) {
          Store(static_cast<bf16*>(product.out) + out, sum);
        } else {
          static_cast<float*>(product.out)[out] = sum;
        }
      }
    }
    __syncwarp();
    NamedBarrierSync(1 + consumer, 128);  // all have read
    if (thread < kChains) BarrierArriveRemote(&barriers_->inbox_empty[consumer], thread);
  }

  const StreamParams& p_;
  const StreamArgs& s_;
  int rank_;
  int first_tile_, stride_;   // of this cluster
  int first_token_, tokens_;  // of x
  int steps_;                 // of this block's chain
  uint8_t* ring_;             // [stage][64 rows][128 bytes]
  uint8_t* x_;                // [64 inputs][token][128 bytes]
  float* inbox_;
  uint16_t* scales_;
  Barriers* barriers_;
};

// Of bf16 weights and up to eight tokens two blocks fit a multiprocessor: the next product of the
// queue fills its stages while this one comes to its end. int8 has to be decoded, which two kernels
// at once on some multiprocessors and none on others would hold up.
constexpr bool SharesMultiprocessor(int group, int tokens) {
  return group == 0 && tokens == 8;
}

template <int kGroup, int kTokens>
__global__ void __cluster_dims__(kChains, 1, 1)
    __launch_bounds__(kThreads, SharesMultiprocessor(kGroup, kTokens) ? 2 : 1)
        Stream(const __grid_constant__ StreamParams p) {
  extern __shared__ uint8_t memory[];
  Block<kGroup, kTokens> block(p, memory);
  block.InitBarriers();
  __syncthreads();
  ClusterArrive();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (warp < kConsumerThreads / 32) {
    block.Consume(warp / 4);
  } else {
    const int helper = warp - kConsumerThreads / 32;
    if (helper < kConsumers) {
      if (lane == 0) block.FetchWeights(helper);
    } else if constexpr (kGroup > 0) {
      block.FetchScales();
    } else {
      if (lane == 0) block.FetchX();
    }
    __syncwarp();
    ClusterWait();
  }
  __syncwarp();
  ClusterSync();  // the others may still send here
}

}  // namespace
}  // namespace mm01::cuda
