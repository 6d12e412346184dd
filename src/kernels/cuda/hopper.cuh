// The instructions of compute capability 9.0a that kernels share, thinly wrapped: barriers in
// shared memory, bulk tensor copies (TMA), and what wgmma needs around it.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

namespace mm01::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- barriers in shared memory. A phase ends when `arrivals` have come and all expected bytes.

__device__ __forceinline__ void BarrierInit(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals));
}
// After BarrierInit by one thread and before the block's __syncthreads (or the cluster's).
__device__ __forceinline__ void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// One arrival that also promises `bytes` of TMA.
__device__ __forceinline__ void BarrierExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void BarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
// An arrival at the same barrier of block `rank` of the cluster. It orders nothing: with
// .release.cluster it would wait for every store under way, about a microsecond each time.
__device__ __forceinline__ void BarrierArriveRemote(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(SharedAddress(barrier)),
      "r"(rank)
      : "memory");
}
// Until the phase of that parity is over. A fresh barrier is in phase 0, and the phase before it,
// of parity 1, counts as over.
__device__ __forceinline__ void BarrierWait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// Which of the stages in shared memory comes next, and the parity of its barriers' phase.
template <int kStages>
struct StageRing {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// ---- bulk tensor copies. Coordinates: the fastest dim first.

__device__ __forceinline__ void TmaPrefetch(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ __forceinline__ void TmaLoad(void* to, const CUtensorMap* map, uint64_t* barrier, int x,
                                        int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(SharedAddress(to)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void TmaLoad(void* to, const CUtensorMap* map, uint64_t* barrier, int x,
                                        int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(SharedAddress(to)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ __forceinline__ void TmaLoad(void* to, const CUtensorMap* map, uint64_t* barrier, int x,
                                        int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(SharedAddress(to)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}
// To the same place in every block of the cluster that `blocks` has a bit for; each one's barrier
// at that place is told.
__device__ __forceinline__ void TmaLoadMulticast(void* to, const CUtensorMap* map,
                                                 uint64_t* barrier, uint16_t blocks, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(SharedAddress(to)),
      "l"(map), "r"(SharedAddress(barrier)), "h"(blocks), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void TmaLoadMulticast(void* to, const CUtensorMap* map,
                                                 uint64_t* barrier, uint16_t blocks, int x, int y,
                                                 int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(SharedAddress(to)),
      "l"(map), "r"(SharedAddress(barrier)), "h"(blocks), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// From shared memory; rows outside the tensor are not written. ProxyFence and a barrier come
// before it, TmaStoreCommit and TmaStoreWait after it, all by the thread that stores.
__device__ __forceinline__ void TmaStore(const CUtensorMap* map, const void* from, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(SharedAddress(from)), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void TmaStore(const CUtensorMap* map, const void* from, int x, int y,
                                         int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
      "r"(SharedAddress(from)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ __forceinline__ void TmaStoreCommit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until at most kPending stores have not yet read their shared memory.
template <int kPending>
__device__ __forceinline__ void TmaStoreWait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
// Between ordinary writes to shared memory and wgmma or TMA, or ordinary reads and the TMA that
// will overwrite what they read: each thread, before the barrier that tells the other side.
__device__ __forceinline__ void ProxyFence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- threads

template <int kId, int kThreads>
__device__ __forceinline__ void NamedBarrierSync() {
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}
__device__ __forceinline__ void NamedBarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Registers a thread, for a whole warpgroup; the kernel needs __launch_bounds__(threads, 1).
template <int kRegisters>
__device__ __forceinline__ void RegistersUp() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void RegistersDown() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void ClusterSync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

// ---- wgmma

__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of d across the asynchronous products.
template <int kCount>
__device__ __forceinline__ void WgmmaHold(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// A matrix in shared memory as wgmma wants it, in the 128-byte swizzle that TMA writes
// (CU_TENSOR_MAP_SWIZZLE_128B): columns of 64 bf16 side by side are separate tiles [rows][64],
// each row 128 bytes, tiles aligned to 1,024 bytes.
//
//   k fastest (kTrans 0)     rows are m or n. The 16 columns from k on: start at + 2 k bytes within
//                            the tile. `stride` 1024, from 8 rows to the next; `leading` not read.
//   m or n fastest (kTrans 1)  rows are k. The 16 rows from k on: start at + 128 k bytes. `stride`
//                            1024, from 8 rows of k to the next; `leading` from one tile of 64
//                            columns to the next, for N > 64.
__device__ __forceinline__ uint64_t WgmmaDescriptor(const void* start, uint32_t leading = 16,
                                                    uint32_t stride = 1024) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3FFFF) >> 4); };
  return field(SharedAddress(start)) | field(leading) << 16 | field(stride) << 32 | 1ull << 62;
}

// Where byte `byte` of row `row` of such a tile [rows][128 bytes] stands.
__device__ __forceinline__ uint32_t Swizzle128(uint32_t row, uint32_t byte) {
  return row * 128 + (byte ^ ((row & 7) << 4));
}

// Four (or with .trans four transposed) 8 x 8 matrices of 16-bit elements from registers into
// shared memory; `address` is the row of this thread's matrix, as stmatrix takes it.
__device__ __forceinline__ void StoreMatrix(uint32_t address, uint32_t a, uint32_t b, uint32_t c,
                                            uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
__device__ __forceinline__ void StoreMatrixTransposed(uint32_t address, uint32_t a, uint32_t b,
                                                      uint32_t c, uint32_t d) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(a), "r"(b), "r"(c), "r"(d)
      : "memory");
}
__device__ __forceinline__ void LoadMatrix(uint32_t address, uint32_t& a, uint32_t& b, uint32_t& c,
                                           uint32_t& d) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatrixTransposed(uint32_t address, uint32_t& a, uint32_t& b,
                                                     uint32_t& c, uint32_t& d) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(address)
               : "memory");
}

// ---- bf16

// Two floats rounded to bf16, `low` in the low half.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace mm01::cuda
