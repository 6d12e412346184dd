// Prefill over a paged cache.
#include "kernels/attention/prefill_kernel.cuh"

namespace mm01::cuda {
namespace {

template <int kDim>
void Launch(Queue& queue, const AttentionProblem& p) {
  prefill::Params params{};
  params.k = PageMap(p.kv.k, kDim);
  params.v = PageMap(p.kv.v, kDim);
  prefill::Launch<kDim, false>(queue, p, params);
}

}  // namespace

void PrefillAttention(Queue& queue, const AttentionProblem& p) {
  if (p.dim == 128) {
    Launch<128>(queue, p);
  } else {
    Launch<64>(queue, p);
  }
}

}  // namespace mm01::cuda
