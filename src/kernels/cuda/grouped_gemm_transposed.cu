#include "kernels/cuda/grouped_gemm.cuh"

namespace mm01::cuda {

void LaunchTransposedGemm(Queue& queue, const GroupedGemmParams& params, int64_t num_tiles) {
  LaunchGemm<Store::kBf16, false, true>(queue, params, num_tiles);
}

}  // namespace mm01::cuda
