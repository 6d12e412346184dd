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
  const DType type = m.weights.activations();
  const Tensor fused = scratch.GetRows(type, rows, 3 * width);
  const Tensor gate = scratch.GetRows(type, rows, width);
  const Tensor flat = scratch.GetRows(type, rows, width);
  const Tensor attended(type, flat.data, {rows, heads, dim});
  Tensor squares;  // of the whole row, where ranks hold parts of it

  const GemmArgs projections[] = {{x, &w.qkv, fused, Activation::kSilu}, {x, &w.gate, gate}};
  GemmMany(m.queue, projections);

  // Head h of row t: q, k and v side by side.
  const auto third = [&](int64_t i) {
    Tensor t(type, static_cast<std::byte*>(fused.data) + i * dim * SizeOf(type),
             {rows, heads, dim});
    t.stride = {3 * width, 3 * dim, 1};
    return t;
  };
  const LightningArgs args{.q = third(0),
                           .k = third(1),
                           .v = third(2),
                           .slope = w.slope.tensor(),
                           .cu_seqlens = step.cu_seqlens(),
                           .position = step.held(),
                           .slot = step.slot(),
                           .max_rows = step.max_rows(),
                           .settled = true,
                           .state = m.state.lightning(layer),
                           .out = attended};
  Lightning(m.queue, args);
  if (m.mesh.sequence->size() > 1) AddEarlierRanks(m.queue, *m.mesh.sequence, args);

  if (m.mesh.tensor->size() > 1) {
    squares = Tensor(scratch.Get<float>(rows), {rows});
    SumOfSquares(m.queue, flat, squares);
    SumOverRanks(*m.mesh.tensor, squares);
  }
  GatedNorm(m.queue, {.x = flat,
                      .gate = gate,
                      .weight = w.norm.tensor(),
                      .eps = static_cast<float>(c.lightning_norm_eps),
                      .squares = squares,
                      .width = c.num_heads * dim,
                      .out = flat});
  Gemm(m.queue, {flat, &w.out, out});
  SumOverRanks(*m.mesh.tensor, out);
}

}  // namespace mm01
