#include "kernels/attention/page_copy.h"

#include <cstring>
#include <vector>

#include "base/check.h"
#ifdef MM01_CUDA
#include "kernels/attention/page_copy_cuda.h"
#endif

namespace mm01 {
namespace {

// copy(in the pool, in packed, bytes) for each piece.
template <typename F>
void ForEachPiece(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
                  const F& copy) {
  std::vector<int64_t> offset;
  int64_t total = 0;
  for (const PagePool& pool : pools) {
    offset.push_back(total);
    total += pool.page_bytes;
  }
  const auto num_pools = std::ssize(pools);
  queue.pool().ParallelFor(std::ssize(pages) * num_pools, [&](int64_t item, int) {
    const int64_t i = item / num_pools;
    const auto p = static_cast<size_t>(item % num_pools);
    const int64_t page = pages[static_cast<size_t>(i)];
    Check(page >= 0, "a pool has no such page");
    copy(pools[p].data + page * pools[p].page_bytes, i * total + offset[p],
         static_cast<size_t>(pools[p].page_bytes));
  });
}

}  // namespace

int64_t PackedPageBytes(std::span<const PagePool> pools) {
  int64_t sum = 0;
  for (const PagePool& pool : pools) sum += pool.page_bytes;
  return sum;
}

void GatherPages(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
                 std::byte* packed) {
  MM01_ON_CUDA(queue, GatherPages(queue, pools, pages, packed));
  ForEachPiece(queue, pools, pages, [&](const std::byte* piece, int64_t at, size_t bytes) {
    std::memcpy(packed + at, piece, bytes);
  });
}

void ScatterPages(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
                  const std::byte* packed) {
  MM01_ON_CUDA(queue, ScatterPages(queue, pools, pages, packed));
  ForEachPiece(queue, pools, pages, [&](std::byte* piece, int64_t at, size_t bytes) {
    std::memcpy(piece, packed + at, bytes);
  });
}

}  // namespace mm01
