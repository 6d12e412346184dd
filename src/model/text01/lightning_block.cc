#include "kernels/activation/activation.h"
#include "kernels/gemm/gemm.h"
#include "kernels/norm/norm.h"
#include "model/text01/blocks.h"
#include "parallel/lasp_plus.h"

namespace mm01 {

void LightningBlock(const TextModel& m, const Step& step, int64_t layer, const Tensor& x,
                    const Tensor& out) {
  const TextConfig& c = m.weights.config;
  const LightningLayer& w = m.weights.layers[static_cast<size_t>(layer)].lightning;
  const int64_t rows = x.dim(0), heads = m.weights.shard.heads.size(), dim = c.head_dim;
  const int64_t width = heads * dim;

  Scratch scratch(m.queue);
  float* qkv = scratch.Get<float>(rows * 3 * width);
  const Tensor fused(qkv, {rows, 3 * width});
  const Tensor gate(scratch.Get<float>(rows * width), {rows, width});
  float* o = scratch.Get<float>(rows * width);
  const Tensor attended(o, {rows, heads, dim}), flat(o, {rows, width});
  const Tensor squares(scratch.Get<float>(rows), {rows});

  const GemmArgs projections[] = {{x, &w.qkv, fused}, {x, &w.gate, gate}};
  GemmMany(m.queue, projections);
  Silu(m.queue, fused);

  // Head h of row t: q, k and v side by side.
  const auto third = [&](int64_t i) {
    Tensor t(qkv + i * dim, {rows, heads, dim});
    t.stride = {3 * width, 3 * dim, 1};
    return t;
  };
  const Tensor slope(w.slope.data(), {heads});
  const LightningArgs args{.q = third(0),
                           .k = third(1),
                           .v = third(2),
                           .slope = slope,
                           .cu_seqlens = step.cu_seqlens(),
                           .position = step.held(),
                           .slot = step.slot(),
                           .state = m.state.lightning(layer),
                           .out = attended};
  Lightning(m.queue, args);
  if (m.mesh.sequence->size() > 1) AddEarlierRanks(m.queue, *m.mesh.sequence, args);

  SumOfSquares(m.queue, flat, squares);
  m.mesh.tensor->AllReduceSum({squares.As<float, 1>().data, static_cast<size_t>(rows)});
  GatedNorm(m.queue, {.x = flat,
                      .gate = gate,
                      .weight = Tensor(w.norm.data(), {width}),
                      .eps = static_cast<float>(c.lightning_norm_eps),
                      .squares = squares,
                      .width = c.num_heads * dim,
                      .out = flat});
  Gemm(m.queue, {flat, &w.out, out});
  m.mesh.tensor->AllReduceSum({out.As<float, 2>().data, static_cast<size_t>(out.size())});
}

}  // namespace mm01
