// Pages gathered and scattered: a block a (page, pool), its threads side by side in vectors of 16
// bytes. The H100's memory sets the time, 2 bytes moved for each byte of a page.
#include "kernels/attention/page_copy_cuda.h"

#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostPages = 512, kMostPools = 64;  // of a launch

struct Pool {
  uint4* data;
  int64_t vectors;  // of a page
  int64_t offset;   // in a packed page, in vectors
};

struct Params {
  uint4* packed;
  int64_t vectors;  // of a packed page
  Pool pools[kMostPools];
  int32_t pages[kMostPages];
};
static_assert(sizeof(Params) < 4096, "every compute capability takes parameters of this size");

// grid (pages, pools)
template <bool kGather>
__global__ void __launch_bounds__(kThreads) CopyPages(const __grid_constant__ Params p) {
  const Pool& pool = p.pools[blockIdx.y];
  uint4* const piece = pool.data + p.pages[blockIdx.x] * pool.vectors;
  uint4* const packed = p.packed + blockIdx.x * p.vectors + pool.offset;
  const uint4* const __restrict__ from = kGather ? piece : packed;
  uint4* const __restrict__ to = kGather ? packed : piece;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < pool.vectors; i += kThreads) to[i] = from[i];
}

template <bool kGather>
void Launch(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
            uint4* packed) {
  constexpr int64_t kVector = sizeof(uint4);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kVector == 0; };
  Check(aligned(packed), "packed pages begin at a multiple of 16 bytes");
  for (const PagePool& pool : pools) {
    Check(aligned(pool.data) && pool.page_bytes % kVector == 0,
          "pages are whole vectors of 16 bytes");
  }
  for (const int32_t page : pages) Check(page >= 0, "a pool has no such page");
  const int64_t vectors = PackedPageBytes(pools) / kVector;
  int64_t offset = 0;
  for (int64_t pool = 0; pool < std::ssize(pools); pool += kMostPools) {
    const int64_t num_pools = std::min<int64_t>(kMostPools, std::ssize(pools) - pool);
    Params p = {};
    p.vectors = vectors;
    for (int64_t i = 0; i < num_pools; ++i) {
      const PagePool& from = pools[static_cast<size_t>(pool + i)];
      p.pools[i] = {.data = reinterpret_cast<uint4*>(from.data),
                    .vectors = from.page_bytes / kVector,
                    .offset = offset};
      offset += p.pools[i].vectors;
    }
    for (int64_t page = 0; page < std::ssize(pages); page += kMostPages) {
      const int64_t num_pages = std::min<int64_t>(kMostPages, std::ssize(pages) - page);
      p.packed = packed + page * vectors;
      std::ranges::copy(pages.subspan(static_cast<size_t>(page), static_cast<size_t>(num_pages)),
                        p.pages);
      const dim3 grid(static_cast<unsigned>(num_pages), static_cast<unsigned>(num_pools));
      CopyPages<kGather><<<grid, kThreads, 0, queue.stream()>>>(p);
      CheckLaunch();
    }
  }
}

}  // namespace

void GatherPages(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
                 std::byte* packed) {
  Launch<true>(queue, pools, pages, reinterpret_cast<uint4*>(packed));
}

void ScatterPages(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
                  const std::byte* packed) {
  Launch<false>(queue, pools, pages, reinterpret_cast<uint4*>(const_cast<std::byte*>(packed)));
}

}  // namespace mm01::cuda
