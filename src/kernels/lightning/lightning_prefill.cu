// Lightning over blocks of 64 tokens on Hopper's tensor cores: bf16, head dim 128.
//
// A cluster of two CTAs works through a (sequence, head), each CTA for 64 of the 128 columns of V.
// They share q and k: each loads one half and sends it to both. In a CTA, three warpgroups:
//
//   loads    one thread keeps TMA copies of the next blocks in flight
//   scores   P = (Q K^T) * decay, to shared memory as two bf16 terms
//   state    S^T [V, K] in registers, float32, for the whole sequence; works out
//              O^T = (S^T Q^T) * decay + V^T P^T   and   S^T = decay S^T + (V * decay)^T K
//
// Transposed, S is the operand of its own product from registers, as are V and decayed V, so only P
// goes through shared memory. What bf16 cannot hold (S, P, decayed V) is the sum of two bf16: one
// costs 1.7e-3 each where rounding o costs 1.7e-3 in all.
#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "device/tensor_map.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/lightning/lightning_fragments.cuh"
#include "kernels/lightning/lightning_kernels.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 3 * kWarpgroup;
constexpr int kConsumers = 2 * kWarpgroup;
static_assert(kLightningBlock == 64, "a block is one tile of wgmma");

enum BarrierId { kScoresBarrier = 1, kStateBarrier = 2, kPatchBarrier = 3 };

struct alignas(1024) Shared {
  __nv_bfloat16 q[kStages][2][kTile];  // halves of K
  __nv_bfloat16 k[kStages][2][kTile];
  __nv_bfloat16 v[kStages][kTile];    // this CTA's half of V
  __nv_bfloat16 scores[2][2][kTile];  // two buffers; high and low terms
  __nv_bfloat16 out[2][kTile];
  float score_decay[kB];  // exp(-slope n)
  PairDecays out_decay;   // exp(-slope (r + 1))
  PairDecays in_decay;    // exp(-slope (B - 1 - r))
  uint64_t full[kStages], empty[kStages];
  uint64_t scores_full[2], scores_empty[2];
};

struct Maps {
  CUtensorMap q, k, v, out;
};

// The (sequence, head)s of a cluster, one after another.
struct Items {
  int cluster, num_clusters, rank;  // of the CTA in its cluster

  template <typename F>
  __device__ void ForEach(const LightningParams& p, const F& f) const {
    for (int item = cluster; item < p.num_seqs * p.heads; item += num_clusters) {
      const Sequence sequence = SequenceAt(p, item / p.heads);
      if (sequence.total > 0) f(sequence, item % p.heads);
    }
  }
};

// ---- loads

__device__ void LoadBlocks(Shared& shared, const LightningParams& p, const Maps& maps,
                           const Items& items) {
  Ring ring;
  const int half = items.rank * 64;
  items.ForEach(p, [&](const Sequence& sequence, int head) {
    const int64_t num_blocks = sequence.num_blocks();
    for (int64_t b = 0; b < num_blocks; ++b) {
      const int stage = ring.stage, row = static_cast<int>(sequence.first_row + b * kB);
      uint64_t* full = &shared.full[stage];
      BarrierWait(&shared.empty[stage], ring.parity ^ 1);
      BarrierExpect(full, 5 * kTileBytes);
      TmaLoadMulticast(shared.k[stage][items.rank], &maps.k, full, 3, half, head, row);
      TmaLoadMulticast(shared.q[stage][items.rank], &maps.q, full, 3, half, head, row);
      TmaLoad(shared.v[stage], &maps.v, full, half, head, row);
      ring.Next();
    }
  });
}

// ---- the first and the last block

// A block that is not all new rows of this sequence: places before `begin` come from the slot, and
// places from `end` on, where other sequences' rows stand, become zero. By both warpgroups.
__device__ void PatchBlock(Shared& shared, int stage, const LightningParams& p,
                           const Sequence& sequence, int head, int rank, int begin, int end) {
  const int thread = static_cast<int>(threadIdx.x) - kWarpgroup;
  const int64_t at = (static_cast<int64_t>(sequence.slot) * p.heads + head) * kB * kDim;
  const auto* k_rows = static_cast<const __nv_bfloat16*>(p.k_rows) + at;
  const auto* v_rows = static_cast<const __nv_bfloat16*>(p.v_rows) + at;
  const auto patch = [&](__nv_bfloat16* tile, const __nv_bfloat16* rows) {
    for (int i = thread; i < kB * 8; i += kConsumers) {
      const int row = i / 8, chunk = i % 8;
      if (row >= begin && row < end) continue;
      uint4 x = {0, 0, 0, 0};
      if (row < begin) x = *reinterpret_cast<const uint4*>(rows + row * kDim + chunk * 8);
      *reinterpret_cast<uint4*>(reinterpret_cast<char*>(tile) + Swizzle128(row, chunk * 16)) = x;
    }
  };
  patch(shared.k[stage][0], k_rows);
  patch(shared.k[stage][1], k_rows + 64);
  patch(shared.v[stage], v_rows + rank * kHalf);
  ProxyFence();
  NamedBarrierSync<kPatchBarrier, kConsumers>();
}

// Places of block b that are new rows.
struct Places {
  int begin, end;
  __device__ Places(const Sequence& sequence, int64_t b)
      : begin(b == 0 ? sequence.begin : 0),
        end(static_cast<int>(min(static_cast<int64_t>(kB), sequence.total - b * kB))) {}
  __device__ bool all() const { return begin == 0 && end == kB; }
};

// ---- scores

__device__ void ScoreBlocks(Shared& shared, const LightningParams& p, const Items& items) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % 32;
  Ring ring;
  uint32_t num_done = 0;
  items.ForEach(p, [&](const Sequence& sequence, int head) {
    const float slope = p.slope[head];
    NamedBarrierSync<kScoresBarrier, kWarpgroup>();
    if (thread < kB) shared.score_decay[thread] = DecayPower(slope, thread);
    NamedBarrierSync<kScoresBarrier, kWarpgroup>();
    float decay[32];
    LoadScoreDecays(decay, shared.score_decay, false);
    const int64_t num_blocks = sequence.num_blocks();
    for (int64_t b = 0; b < num_blocks; ++b) {
      const int stage = ring.stage;
      BarrierWait(&shared.full[stage], ring.parity);
      const Places places(sequence, b);
      if (!places.all()) {
        PatchBlock(shared, stage, p, sequence, head, items.rank, places.begin, places.end);
      }
      float x[32];
      WgmmaFence();
      MultiplyScores(x, shared.q[stage], shared.k[stage]);
      const uint32_t buffer = num_done & 1;
      BarrierWait(&shared.scores_empty[buffer], ~(num_done >> 1) & 1);
      WgmmaWait<0>();
      WgmmaHold(x);
      ReleaseStage(&shared.empty[stage]);
      ring.Next();

      StoreScores(shared.scores[buffer], x, decay);
      ProxyFence();
      __syncwarp();
      if (lane == 0) BarrierArrive(&shared.scores_full[buffer]);
      ++num_done;
    }
  });
}

// ---- state

// One (sequence, head), as the state's warpgroup sees it.
struct StateItem {
  Shared& shared;
  const LightningParams& p;
  const Maps& maps;
  const Sequence& sequence;
  int head, rank;

  // Block b of o, which all threads have put in its tile, to memory.
  __device__ void SendOut(int64_t b, const __nv_bfloat16* tile) const {
    const int thread = threadIdx.x % kWarpgroup;
    ProxyFence();
    // The other tile has been read before anyone writes there again.
    if (thread == 0) TmaStoreWait<0>();
    NamedBarrierSync<kStateBarrier, kWarpgroup>();
    const Places places(sequence, b);
    const int64_t row = sequence.first_row + b * kB;
    if (!places.all()) {
      StoreRows(tile, row, places);
    } else if (thread == 0) {
      TmaStore(&maps.out, tile, rank * kHalf, head, static_cast<int>(row));
      TmaStoreCommit();
    }
  }

  // The rows of o that are this sequence's.
  __device__ void StoreRows(const __nv_bfloat16* tile, int64_t row, const Places& places) const {
    auto* out = static_cast<__nv_bfloat16*>(p.out) + row * p.out_row_stride +
                head * p.out_head_stride + rank * kHalf;
    for (int i = threadIdx.x % kWarpgroup; i < kB * 8; i += kWarpgroup) {
      const int r = i / 8, chunk = i % 8;
      if (r < places.begin || r >= places.end) continue;
      *reinterpret_cast<uint4*>(out + r * p.out_row_stride + chunk * 8) =
          *reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(tile) +
                                          Swizzle128(r, chunk * 16));
    }
  }

  __device__ void WriteDecays(float slope) const {
    const int place = threadIdx.x % kWarpgroup;
    NamedBarrierSync<kStateBarrier, kWarpgroup>();
    if (place < kB) {
      const int row = place % 8 / 2, at = place / 8 * 2 + place % 2;
      reinterpret_cast<float*>(shared.out_decay[row])[at] = DecayPower(slope, place + 1);
      reinterpret_cast<float*>(shared.in_decay[row])[at] = DecayPower(slope, kB - 1 - place);
    }
    NamedBarrierSync<kStateBarrier, kWarpgroup>();
  }
};

// The tensor cores work through O's first term, then its second, then what S gains, and all else
// is done beside them. Loads from shared memory and waits for barriers go ahead of a run of
// products: behind it they would queue until the last one has started.
__device__ void StateBlocks(Shared& shared, const LightningParams& p, const Maps& maps,
                            const Items& items) {
  const bool first_lane = threadIdx.x % 32 == 0;
  Ring ring;
  uint32_t num_done = 0;
  items.ForEach(p, [&](const Sequence& sequence, int head) {
    const StateItem item{shared, p, maps, sequence, head, items.rank};
    const float slope = p.slope[head], forget = BlockForget(slope);
    item.WriteDecays(slope);
    float* const kept = StateOf(p, sequence, head, items.rank);
    State s;
    LoadHalf(s.half[0], kept, sequence.fresh);
    LoadHalf(s.half[1], kept + 64 * kDim, sequence.fresh);
    Terms first(s.half[0]);

    const int64_t num_blocks = sequence.num_blocks(), num_complete = sequence.num_complete();
    for (int64_t b = 0; b < num_blocks; ++b) {
      const int stage = ring.stage;
      const uint32_t buffer = num_done & 1;
      BarrierWait(&shared.full[stage], ring.parity);
      const Places places(sequence, b);
      if (!places.all()) {
        PatchBlock(shared, stage, p, sequence, head, items.rank, places.begin, places.end);
      }
      uint32_t v[4][4];
      float4 decay[4];
      LoadFragments(v, shared.v[stage]);
      LoadDecays(shared.in_decay, decay);

      float o[32], added[2][32];
      WgmmaFence();
      Multiply<false>(o, first, shared.q[stage][0], false);
      if (b > 0) item.SendOut(b - 1, shared.out[buffer ^ 1]);
      const Terms second(s.half[1]);
      WgmmaFence();
      Multiply<false>(o, second, shared.q[stage][1], true);
      WgmmaWait<1>();  // `first` is free
      const Terms decayed_v(v, decay);
      WgmmaFence();
      Multiply<true>(added[0], decayed_v, shared.k[stage][0], false);
      BarrierWait(&shared.scores_full[buffer], num_done >> 1 & 1);

      WgmmaWait<1>();
      WgmmaHold(o);
      LoadDecays(shared.out_decay, decay);
      Scale(o, decay);
      WgmmaFence();
      AddScores(o, v, shared.scores[buffer]);
      Multiply<true>(added[1], decayed_v, shared.k[stage][1], false);

      WgmmaWait<2>();
      WgmmaHold(added[0]);
      Advance(s.half[0], forget, added[0]);
      first = Terms(s.half[0]);
      WgmmaWait<1>();
      WgmmaHold(o);
      __syncwarp();
      if (first_lane) BarrierArrive(&shared.scores_empty[buffer]);
      StoreFragments(shared.out[buffer], o);
      WgmmaWait<0>();
      WgmmaHold(added[1]);
      Advance(s.half[1], forget, added[1]);
      ReleaseStage(&shared.empty[stage]);
      if (b + 1 == num_complete) {
        StoreHalf(kept, s.half[0]);
        StoreHalf(kept + 64 * kDim, s.half[1]);
      }
      ring.Next();
      ++num_done;
    }
    item.SendOut(num_blocks - 1, shared.out[~num_done & 1]);
  });
  if (threadIdx.x % kWarpgroup == 0) TmaStoreWait<0>();
}

__global__ void __cluster_dims__(2) __launch_bounds__(kThreads, 1)
    Prefill(const __grid_constant__ LightningParams p, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&shared.full[i], 1);
      BarrierInit(&shared.empty[i], 2 * kConsumers / 32);
    }
    for (int i = 0; i < 2; ++i) {
      BarrierInit(&shared.scores_full[i], kWarpgroup / 32);
      BarrierInit(&shared.scores_empty[i], kWarpgroup / 32);
    }
    BarrierInitFence();
  }
  ClusterSync();

  const Items items{static_cast<int>(blockIdx.x) / 2, static_cast<int>(gridDim.x) / 2,
                    static_cast<int>(ClusterRank())};
  const int role = threadIdx.x / kWarpgroup;
  if (role == 0) {
    RegistersDown<40>();
    if (threadIdx.x == 0) LoadBlocks(shared, p, maps, items);
    __syncwarp();
  } else if (role == 1) {
    RegistersUp<200>();
    ScoreBlocks(shared, p, items);
  } else {
    RegistersUp<240>();
    StateBlocks(shared, p, maps, items);
  }
  // The other CTA may still write here.
  ClusterSync();
}

CUtensorMap MapOf(const void* data, const LightningParams& p, int64_t row_stride,
                  int64_t head_stride) {
  const int64_t element = sizeof(__nv_bfloat16);
  return MakeTensorMap(data, {.dims = {kDim, p.heads, p.rows},
                              .strides = {head_stride * element, row_stride * element},
                              .box = {64, 1, kB}});
}

}  // namespace

void LaunchPrefill(Queue& queue, const LightningParams& p) {
  static const bool ready = [] {
    CheckCuda(
        cudaFuncSetAttribute(Prefill, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)));
    return true;
  }();
  static_cast<void>(ready);
  const Maps maps{MapOf(p.q, p, p.row_stride, p.head_stride),
                  MapOf(p.k, p, p.row_stride, p.head_stride),
                  MapOf(p.v, p, p.row_stride, p.head_stride),
                  MapOf(p.out, p, p.out_row_stride, p.out_head_stride)};
  const int items = p.num_seqs * p.heads;
  const int clusters = std::min(items, std::max(1, Multiprocessors() / 2));
  Prefill<<<static_cast<unsigned>(2 * clusters), kThreads, sizeof(Shared), queue.stream()>>>(p,
                                                                                             maps);
  CheckLaunch();
}

}  // namespace mm01::cuda
