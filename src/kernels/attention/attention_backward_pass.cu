// The pass over whole documents: the kernel of prefill, which finds keys and values in rows.
#include "kernels/attention/attention_backward_cuda.cuh"
#include "kernels/attention/prefill_kernel.cuh"

namespace mm01::cuda {
namespace {

template <int kDim>
void Launch(Queue& queue, const AttentionDocuments& a, const AttentionProblem& p) {
  const auto rows = [&](const Heads& x) {
    return MakeTensorMap(x.data, {.dims = {kDim, a.kv_heads, a.rows},
                                  .strides = {x.head * 2, x.row * 2},
                                  .box = {64, 1, kKeys}});
  };
  prefill::Params params{};
  params.k = rows(a.k);
  params.v = rows(a.v);
  prefill::Launch<kDim, true>(queue, p, params);
}

}  // namespace

void AttentionPassHopper(Queue& queue, const AttentionDocuments& a) {
  AttentionProblem p{};
  p.q = a.q;
  p.out = a.out;
  p.lse = a.lse;
  p.lse_row = a.heads;
  p.sequences.cu_seqlens = a.cu_seqlens;
  p.sequences.count = a.documents;
  p.num_rows = a.rows;
  p.heads = a.heads;
  p.kv_heads = a.kv_heads;
  p.group = a.group;
  p.dim = a.dim;
  if (a.dim == 128) {
    Launch<128>(queue, a, p);
  } else {
    Launch<64>(queue, a, p);
  }
}

}  // namespace mm01::cuda
