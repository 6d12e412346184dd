// Pages of several pools side by side in one block of memory, and the way back: what a sequence has
// in many small pieces becomes one copy to or from the host.
//
//   packed[i][p][.] = pool p's page pages[i]        GatherPages; ScatterPages the other way round
//
// Letters   M pages, P pools, whose pages have b_p bytes; packed has M x (b_0 + ... + b_{P-1}).
//           A pool is any array cut into equal pieces: keys of a layer, or the S of all slots.
// Units     On a GPU b_p is a multiple of 16, and pools and packed begin at one.
// Errors    Other sizes and places are our own bug: Check throws. So are page numbers beyond a
//           pool's end, and a page that is named twice for ScatterPages, but nobody looks.
// Cost      Each byte read once and written once. On a GPU a launch for 512 pages of 64 pools. They
//           travel as the kernel's parameters: nothing is copied to the device for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "device/queue.h"

namespace mm01 {

struct PagePool {
  std::byte* data;  // of page 0
  int64_t page_bytes;
};

void GatherPages(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
                 std::byte* packed);
void ScatterPages(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
                  const std::byte* packed);

// The bytes of one page in all pools: b_0 + ... + b_{P-1}.
int64_t PackedPageBytes(std::span<const PagePool> pools);

}  // namespace mm01
