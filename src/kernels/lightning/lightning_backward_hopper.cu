// The sweeps of lightning_backward_sweep.cuh on Hopper's tensor cores: bf16, head dim 128. The
// schedule of lightning_prefill.cu, with x, y, z, u and W^T [Z, Y] for q, k, v, o and S^T [V, K]:
//
// A cluster of two CTAs works through a (document, head, sweep), each CTA for 64 of the 128 columns
// of Z. They share x and y: each loads one half and sends it to both. In a CTA, three warpgroups:
//
//   loads    one thread keeps TMA copies of the next blocks in flight
//   scores   P = (X Y^T) * decay, to shared memory as two bf16 terms; where u goes through SiLU's
//            gradient, its slopes, there too: the state's warpgroup is the one others wait for
//   state    W^T in registers, float32, for the whole document; works out
//              U^T = (W^T X^T) * decay + Z^T P^T   and   W^T = decay W^T + (Z * decay)^T Y
//
// Blocks are counted from the document's first row in both directions, so a sweep back begins with
// the block that may be short.
#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "device/tensor_map.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/lightning/lightning_backward_slopes.cuh"
#include "kernels/lightning/lightning_backward_sweep.cuh"
#include "kernels/lightning/lightning_fragments.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 3 * kWarpgroup;
constexpr int kConsumers = 2 * kWarpgroup;
static_assert(kLightningBlock == 64, "a block is one tile of wgmma");

enum BarrierId { kScoresBarrier = 1, kStateBarrier = 2, kPatchBarrier = 3 };

struct alignas(1024) Shared {
  __nv_bfloat16 x[kStages][2][kTile];  // halves of Y
  __nv_bfloat16 y[kStages][2][kTile];
  __nv_bfloat16 z[kStages][kTile];    // this CTA's half of Z
  __nv_bfloat16 scores[2][2][kTile];  // two buffers; high and low terms
  __nv_bfloat16 out[2][kTile];
  __half slopes[2][kTile];  // SiLU' where `out` has the same numbers; buffers as of `scores`
  float score_decay[kB];    // exp(-slope n)
  // With r the place in a block and m the rows of the last one:
  PairDecays from_before;  // exp(-slope (r + 1))
  PairDecays to_end;       // exp(-slope (B - 1 - r))
  PairDecays to_last;      // exp(-slope (m - 1 - r))
  uint64_t full[kStages], empty[kStages];
  uint64_t scores_full[2], scores_empty[2];
};

static_assert(sizeof(Shared) <= 227 * 1024);

struct Maps {
  CUtensorMap of[SweepParams::kMaxTensors];
};

// The items of a cluster, one after another.
template <bool kStatesOnly>
struct Items {
  int cluster, num_clusters, rank;  // of the CTA in its cluster

  template <typename F>
  __device__ void ForEach(const SweepParams& p, const F& f) const {
    for (int i = cluster; i < p.num_items(); i += num_clusters) {
      const SweepItem item(p, i);
      if (!item.exists() || (kStatesOnly && item.ends())) continue;
      f(item);
    }
  }
};

// One block, the i-th that the sweep comes to.
struct Block {
  int row;  // of the call
  int rows;
  bool last;  // of the item

  __device__ Block(const SweepItem& item, int i) {
    const int n = item.num_blocks(), b = item.sweep.back ? n - 1 - i : i;
    last = b + 1 == n;
    rows = last ? item.last_rows() : kB;
    row = item.segment.first_row + b * kB;
  }
};

// ---- loads

template <bool kStatesOnly>
__device__ void LoadBlocks(Shared& shared, const SweepParams& p, const Maps& maps,
                           const Items<kStatesOnly>& items) {
  Ring ring;
  const int half = items.rank * 64;
  items.ForEach(p, [&](const SweepItem& item) {
    const CUtensorMap *x = &maps.of[item.sweep.x], *y = &maps.of[item.sweep.y],
                      *z = &maps.of[item.sweep.z];
    const int num_blocks = item.num_blocks();
    for (int i = 0; i < num_blocks; ++i) {
      const int stage = ring.stage, row = Block(item, i).row;
      uint64_t* full = &shared.full[stage];
      BarrierWait(&shared.empty[stage], ring.parity ^ 1);
      BarrierExpect(full, (kStatesOnly ? 3 : 5) * kTileBytes);
      TmaLoadMulticast(shared.y[stage][items.rank], y, full, 3, half, item.head, row);
      if constexpr (!kStatesOnly) {
        TmaLoadMulticast(shared.x[stage][items.rank], x, full, 3, half, item.head, row);
      }
      TmaLoad(shared.z[stage], z, full, half, item.head, row);
      ring.Next();
    }
  });
}

// Rows of y and z behind the item's last, where other documents' stand, become zero. By both
// warpgroups.
__device__ void ClearRows(Shared& shared, int stage, int first) {
  const int thread = static_cast<int>(threadIdx.x) - kWarpgroup;
  const auto clear = [&](__nv_bfloat16* tile) {
    for (int i = first * 8 + thread; i < kB * 8; i += kConsumers) {
      *reinterpret_cast<uint4*>(reinterpret_cast<char*>(tile) + i * 16) = {0, 0, 0, 0};
    }
  };
  clear(shared.y[stage][0]);
  clear(shared.y[stage][1]);
  clear(shared.z[stage]);
  ProxyFence();
  NamedBarrierSync<kPatchBarrier, kConsumers>();
}

// ---- scores

__device__ void ScoreBlocks(Shared& shared, const SweepParams& p, const Items<false>& items) {
  const int thread = threadIdx.x % kWarpgroup;
  Ring ring;
  uint32_t num_done = 0;
  items.ForEach(p, [&](const SweepItem& item) {
    const float slope = p.slope[item.head];
    NamedBarrierSync<kScoresBarrier, kWarpgroup>();
    if (thread < kB) shared.score_decay[thread] = DecayPower(slope, thread);
    NamedBarrierSync<kScoresBarrier, kWarpgroup>();
    float decay[32];
    LoadScoreDecays(decay, shared.score_decay, item.sweep.back);
    const int num_blocks = item.num_blocks();
    for (int i = 0; i < num_blocks; ++i) {
      const int stage = ring.stage;
      const Block block(item, i);
      RowsBeforeSilu pre;
      if (item.sweep.pre >= 0) pre.Fetch(p, item, block.row, block.rows, items.rank);
      BarrierWait(&shared.full[stage], ring.parity);
      if (block.rows < kB) ClearRows(shared, stage, block.rows);
      float x[32];
      WgmmaFence();
      MultiplyScores(x, shared.x[stage], shared.y[stage]);
      const uint32_t buffer = num_done & 1;
      BarrierWait(&shared.scores_empty[buffer], ~(num_done >> 1) & 1);
      WgmmaWait<0>();
      WgmmaHold(x);
      ReleaseStage(&shared.empty[stage]);
      ring.Next();

      StoreScores(shared.scores[buffer], x, decay);
      ProxyFence();
      if (item.sweep.pre >= 0) pre.StoreSlopes(shared.slopes[buffer]);
      __syncwarp();
      if (thread % 32 == 0) BarrierArrive(&shared.scores_full[buffer]);
      ++num_done;
    }
  });
}

// Where there are no scores to work out: lets the stages go.
__device__ void PassBlocks(Shared& shared, const SweepParams& p, const Items<true>& items) {
  Ring ring;
  items.ForEach(p, [&](const SweepItem& item) {
    for (int i = 0; i < item.num_blocks(); ++i) {
      BarrierWait(&shared.full[ring.stage], ring.parity);
      const Block block(item, i);
      if (block.rows < kB) ClearRows(shared, ring.stage, block.rows);
      ReleaseStage(&shared.empty[ring.stage]);
      ring.Next();
    }
  });
}

// ---- state

// One item, as the state's warpgroup sees it.
struct StateItem {
  Shared& shared;
  const SweepParams& p;
  const Maps& maps;
  const SweepItem& item;
  int rank;

  // A block of u, which all threads have put in its tile, to memory.
  __device__ void SendOut(const Block& block, const __nv_bfloat16* tile) const {
    const int thread = threadIdx.x % kWarpgroup;
    ProxyFence();
    // The other tile has been read before anyone writes there again.
    if (thread == 0) TmaStoreWait<0>();
    NamedBarrierSync<kStateBarrier, kWarpgroup>();
    if (block.rows < kB) {
      StoreRows(block, tile);
    } else if (thread == 0) {
      TmaStore(&maps.of[item.sweep.u], tile, rank * kHalf, item.head, block.row);
      TmaStoreCommit();
    }
  }

  // The rows of u that are this document's.
  __device__ void StoreRows(const Block& block, const __nv_bfloat16* tile) const {
    const SweepTensor& u = p.tensor[item.sweep.u];
    auto* to = static_cast<__nv_bfloat16*>(u.data) + block.row * u.row_stride +
               item.head * u.head_stride + rank * kHalf;
    for (int i = threadIdx.x % kWarpgroup; i < block.rows * 8; i += kWarpgroup) {
      const int r = i / 8, chunk = i % 8;
      *reinterpret_cast<uint4*>(to + r * u.row_stride + chunk * 8) =
          *reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(tile) +
                                          Swizzle128(r, chunk * 16));
    }
  }

  __device__ void WriteDecays(float slope) const {
    const int place = threadIdx.x % kWarpgroup;
    NamedBarrierSync<kStateBarrier, kWarpgroup>();
    if (place < kB) {
      const int row = place % 8 / 2, at = place / 8 * 2 + place % 2;
      const auto write = [&](PairDecays& decays, int n) {
        reinterpret_cast<float*>(decays[row])[at] = DecayPower(slope, max(0, n));
      };
      write(shared.from_before, place + 1);
      write(shared.to_end, kB - 1 - place);
      write(shared.to_last, item.last_rows() - 1 - place);
    }
    NamedBarrierSync<kStateBarrier, kWarpgroup>();
  }

  // This thread's elements of W^T: rows z = 16 warp + lane / 4 and z + 8 of this CTA's half,
  // columns y = 8 j + 2 (lane % 4) and the next: f(half, element, where it is in the state).
  template <typename F>
  __device__ void ForEachElement(const F& f) const {
    const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
    const int y_stride = item.sweep.transposed ? 1 : kDim;
    const int z_stride = item.sweep.transposed ? kDim : 1;
    const int first = lane % 4 * 2 * y_stride + (rank * kHalf + warp * 16 + lane / 4) * z_stride;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        f(half, i, first + (half * 64 + i / 4 * 8 + i % 2) * y_stride + i / 2 % 2 * 8 * z_stride);
      }
    }
  }
  __device__ void Load(State& w, const float* from) const {
    ForEachElement(
        [&](int half, int i, int at) { w.half[half][i] = from == nullptr ? 0.0f : from[at]; });
  }
  __device__ void Store(const State& w, float* to) const {
    if (to == nullptr) return;
    ForEachElement([&](int half, int i, int at) { to[at] = w.half[half][i]; });
  }
};

// As StateBlocks of lightning_prefill.cu: the tensor cores work through U's first term, then its
// second, then what W gains, and all else is done beside them. Loads from shared memory and waits
// for barriers go ahead of a run of products: behind it they would queue until the last one has
// started.
__device__ void StateBlocks(Shared& shared, const SweepParams& p, const Maps& maps,
                            const Items<false>& items) {
  const bool first_lane = threadIdx.x % 32 == 0;
  Ring ring;
  uint32_t num_done = 0;
  items.ForEach(p, [&](const SweepItem& item) {
    const StateItem state{shared, p, maps, item, items.rank};
    const float slope = p.slope[item.head];
    state.WriteDecays(slope);
    State w;
    state.Load(w, item.StateIn(p));
    Terms first(w.half[0]);

    const int num_blocks = item.num_blocks();
    for (int i = 0; i < num_blocks; ++i) {
      const int stage = ring.stage;
      const uint32_t buffer = num_done & 1;
      BarrierWait(&shared.full[stage], ring.parity);
      const Block block(item, i);
      if (block.rows < kB) ClearRows(shared, stage, block.rows);
      const PairDecays* to_end = block.last ? &shared.to_last : &shared.to_end;
      uint32_t z[4][4];
      float4 decay[4];
      LoadFragments(z, shared.z[stage]);
      LoadDecays(*(item.sweep.back ? &shared.from_before : to_end), decay);

      float u[32], added[2][32];
      WgmmaFence();
      Multiply<false>(u, first, shared.x[stage][0], false);
      if (i > 0) state.SendOut(Block(item, i - 1), shared.out[buffer ^ 1]);
      const Terms second(w.half[1]);
      WgmmaFence();
      Multiply<false>(u, second, shared.x[stage][1], true);
      WgmmaWait<1>();  // `first` is free
      const Terms decayed_z(z, decay);
      WgmmaFence();
      Multiply<true>(added[0], decayed_z, shared.y[stage][0], false);
      BarrierWait(&shared.scores_full[buffer], num_done >> 1 & 1);

      WgmmaWait<1>();
      WgmmaHold(u);
      LoadDecays(*(item.sweep.back ? to_end : &shared.from_before), decay);
      Scale(u, decay);
      WgmmaFence();
      AddScores(u, z, shared.scores[buffer]);
      Multiply<true>(added[1], decayed_z, shared.y[stage][1], false);

      const float forget = Forget(slope, block.rows);
      WgmmaWait<2>();
      WgmmaHold(added[0]);
      Advance(w.half[0], forget, added[0]);
      first = Terms(w.half[0]);
      WgmmaWait<1>();
      WgmmaHold(u);
      if (item.sweep.pre >= 0) MultiplyBySlopes(u, shared.slopes[buffer]);
      __syncwarp();
      if (first_lane) BarrierArrive(&shared.scores_empty[buffer]);
      StoreFragments(shared.out[buffer], u);
      WgmmaWait<0>();
      WgmmaHold(added[1]);
      Advance(w.half[1], forget, added[1]);
      ReleaseStage(&shared.empty[stage]);
      ring.Next();
      ++num_done;
    }
    if (num_blocks > 0) state.SendOut(Block(item, num_blocks - 1), shared.out[~num_done & 1]);
    state.Store(w, item.StateOut(p));
  });
  if (threadIdx.x % kWarpgroup == 0) TmaStoreWait<0>();
}

// What the blocks of an item add to the state.
__device__ void AddBlocks(Shared& shared, const SweepParams& p, const Maps& maps,
                          const Items<true>& items) {
  Ring ring;
  items.ForEach(p, [&](const SweepItem& item) {
    const StateItem state{shared, p, maps, item, items.rank};
    const float slope = p.slope[item.head];
    state.WriteDecays(slope);
    State w;
    state.Load(w, nullptr);
    const int num_blocks = item.num_blocks();
    for (int i = 0; i < num_blocks; ++i) {
      const int stage = ring.stage;
      BarrierWait(&shared.full[stage], ring.parity);
      const Block block(item, i);
      if (block.rows < kB) ClearRows(shared, stage, block.rows);
      const PairDecays* to_end = block.last ? &shared.to_last : &shared.to_end;
      uint32_t z[4][4];
      float4 decay[4];
      LoadFragments(z, shared.z[stage]);
      LoadDecays(*(item.sweep.back ? &shared.from_before : to_end), decay);
      const Terms decayed_z(z, decay);
      float added[2][32];
      WgmmaFence();
      Multiply<true>(added[0], decayed_z, shared.y[stage][0], false);
      Multiply<true>(added[1], decayed_z, shared.y[stage][1], false);
      const float forget = Forget(slope, block.rows);
      WgmmaWait<1>();
      WgmmaHold(added[0]);
      Advance(w.half[0], forget, added[0]);
      WgmmaWait<0>();
      WgmmaHold(added[1]);
      Advance(w.half[1], forget, added[1]);
      ReleaseStage(&shared.empty[stage]);
      ring.Next();
    }
    state.Store(w, item.BorderBehind(p));
  });
}

template <bool kStatesOnly>
__global__ void __cluster_dims__(2) __launch_bounds__(kThreads, 1)
    Sweeps(const __grid_constant__ SweepParams p, const __grid_constant__ Maps maps) {
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

  const Items<kStatesOnly> items{static_cast<int>(blockIdx.x) / 2, static_cast<int>(gridDim.x) / 2,
                                 static_cast<int>(ClusterRank())};
  const int role = threadIdx.x / kWarpgroup;
  if (role == 0) {
    RegistersDown<40>();
    if (threadIdx.x == 0) LoadBlocks(shared, p, maps, items);
    __syncwarp();
  } else if (role == 1) {
    RegistersUp<200>();
    if constexpr (kStatesOnly) {
      PassBlocks(shared, p, items);
    } else {
      ScoreBlocks(shared, p, items);
    }
  } else {
    RegistersUp<240>();
    if constexpr (kStatesOnly) {
      AddBlocks(shared, p, maps, items);
    } else {
      StateBlocks(shared, p, maps, items);
    }
  }
  // The other CTA may still write here.
  ClusterSync();
}

template <bool kStatesOnly>
void Launch(Queue& queue, const SweepParams& p) {
  static const bool ready = [] {
    CheckCuda(cudaFuncSetAttribute(Sweeps<kStatesOnly>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   sizeof(Shared)));
    return true;
  }();
  static_cast<void>(ready);
  Maps maps{};
  for (int i = 0; i < p.num_tensors; ++i) {
    const SweepTensor& t = p.tensor[i];
    const int64_t element = sizeof(__nv_bfloat16);
    maps.of[i] =
        MakeTensorMap(t.data, {.dims = {kDim, p.heads, p.rows},
                               .strides = {t.head_stride * element, t.row_stride * element},
                               .box = {64, 1, kB}});
  }
  const int clusters = std::min(p.num_items(), std::max(1, Multiprocessors() / 2));
  Sweeps<kStatesOnly>
      <<<static_cast<unsigned>(2 * clusters), kThreads, sizeof(Shared), queue.stream()>>>(p, maps);
  CheckLaunch();
}

}  // namespace

void LaunchSweeps(Queue& queue, const SweepParams& p) {
  Launch<false>(queue, p);
}

void LaunchSegmentStates(Queue& queue, const SweepParams& p) {
  Launch<true>(queue, p);
}

}  // namespace mm01::cuda
