#include "kernels/cuda/grouped_gemm.cuh"

namespace mm01::cuda {

void LaunchInt8Gemm(Queue& queue, const GroupedGemmParams& params, bool gated, int64_t num_tiles) {
  if (gated) {
    LaunchGemm<Store::kGated, true>(queue, params, num_tiles);
  } else {
    LaunchGemm<Store::kBf16, true>(queue, params, num_tiles);
  }
}

}  // namespace mm01::cuda
