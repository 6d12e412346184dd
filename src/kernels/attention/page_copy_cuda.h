// page_copy.h on a GPU.
#pragma once

#include "kernels/attention/page_copy.h"

namespace mm01::cuda {

void GatherPages(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
                 std::byte* packed);
void ScatterPages(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
                  const std::byte* packed);

}  // namespace mm01::cuda
