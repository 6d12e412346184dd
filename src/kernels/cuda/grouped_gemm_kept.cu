#include "kernels/cuda/grouped_gemm.cuh"

namespace mm01::cuda {

void LaunchKeptGemm(Queue& queue, const GroupedGemmParams& params, int64_t num_tiles) {
  LaunchGemm<Store::kGatedKept, false>(queue, params, num_tiles);
}

void LaunchSiluGemm(Queue& queue, const GroupedGemmParams& params, int64_t num_tiles) {
  LaunchGemm<Store::kBf16Silu, false>(queue, params, num_tiles);
}

}  // namespace mm01::cuda
