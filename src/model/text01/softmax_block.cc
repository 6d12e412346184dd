#include "kernels/attention/attention.h"
#include "kernels/gemm/gemm.h"
#include "kernels/rope/rope.h"
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
  float* q = scratch.Get<float>(rows * heads * dim);
  float* k = scratch.Get<float>(rows * kv_heads * dim);
  float* v = scratch.Get<float>(rows * kv_heads * dim);
  float* o = scratch.Get<float>(rows * heads * dim);
  const GemmArgs projections[] = {{x, &w.q, Tensor(q, {rows, heads * dim})},
                                  {x, &w.k, Tensor(k, {rows, kv_heads * dim})},
                                  {x, &w.v, Tensor(v, {rows, kv_heads * dim})}};
  GemmMany(m.queue, projections);

  const Tensor queries(q, {rows, heads, dim}), keys(k, {rows, kv_heads, dim});
  Rope(m.queue, queries, step.cos(), step.sin());
  Rope(m.queue, keys, step.cos(), step.sin());
  KvStore(m.queue, {.k = keys,
                    .v = Tensor(v, {rows, kv_heads, dim}),
                    .cu_seqlens = step.cu_seqlens(),
                    .position = step.position(),
                    .kv_start = step.begin(),
                    .block_table = step.block_table(),
                    .kv = m.state.kv(layer)});
  const AttentionArgs args{.q = queries,
                           .cu_seqlens = step.cu_seqlens(),
                           .position = step.position(),
                           .kv_start = step.begin(),
                           .kv_length = step.length(),
                           .block_table = step.block_table(),
                           .kv = m.state.kv(layer),
                           .out = Tensor(o, {rows, heads, dim})};
  if (m.mesh.sequence->size() > 1) {
    RingAttention(m.queue, *m.mesh.sequence, args);
  } else {
    Attention(m.queue, args);
  }
  Gemm(m.queue, {Tensor(o, {rows, heads * dim}), &w.out, out});
  m.mesh.tensor->AllReduceSum({out.As<float, 2>().data, static_cast<size_t>(out.size())});
}

}  // namespace mm01
