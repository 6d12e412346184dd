#include "kernels/attention/attention.h"
#include "kernels/gemm/gemm.h"
#include "model/text01/blocks.h"
#include "parallel/ring_attention.h"

namespace mm01 {

void SoftmaxBlock(const TextModel& m, const Step& step, int64_t layer, const Tensor& x,
                  const Tensor& out) {
  const TextConfig& c = m.weights.config;
  const SoftmaxLayer& w = m.weights.layers[static_cast<size_t>(layer)].softmax;
  const int64_t rows = x.dim(0), dim = c.head_dim;
  const int64_t heads = m.weights.shard.heads.size(), kv_heads = m.weights.shard.kv_heads.size();

  Scratch scratch(m.queue);
  const DType type = m.weights.activations();
  const Tensor q = scratch.GetRows(type, rows, heads * dim);
  const Tensor k = scratch.GetRows(type, rows, kv_heads * dim);
  const Tensor v = scratch.GetRows(type, rows, kv_heads * dim);
  const Tensor o = scratch.GetRows(type, rows, heads * dim);
  const GemmArgs projections[] = {{x, &w.q, q}, {x, &w.k, k}, {x, &w.v, v}};
  GemmMany(m.queue, projections);

  const auto by_head = [&](const Tensor& t) {
    return Tensor(type, t.data, {rows, t.dim(1) / dim, dim});
  };
  const Tensor queries = by_head(q), keys = by_head(k);
  KvStore(m.queue, {.k = keys,
                    .v = by_head(v),
                    .cu_seqlens = step.cu_seqlens(),
                    .position = step.position(),
                    .kv_start = step.begin(),
                    .block_table = step.block_table(),
                    .max_rows = step.max_rows(),
                    .kv = m.state.kv(layer),
                    .q = queries,
                    .cos = step.cos(),
                    .sin = step.sin()});
  const AttentionArgs args{.q = queries,
                           .cu_seqlens = step.cu_seqlens(),
                           .position = step.position(),
                           .kv_start = step.begin(),
                           .kv_length = step.length(),
                           .block_table = step.block_table(),
                           .max_rows = step.max_rows(),
                           .kv = m.state.kv(layer),
                           .out = by_head(o)};
  if (m.mesh.sequence->size() > 1) {
    RingAttention(m.queue, *m.mesh.sequence, args);
  } else {
    Attention(m.queue, args);
  }
  Gemm(m.queue, {o, &w.out, out});
  SumOverRanks(*m.mesh.tensor, out);
}

}  // namespace mm01
