#include "kernels/activation/activation_backward.h"
#include "kernels/gemm/gemm_backward.h"
#include "kernels/lightning/lightning_backward.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_backward.h"
#include "model/text01/training_blocks.h"

namespace mm01 {
namespace {

// q, k or v of fused rows [T, H 3 K]: head h has them side by side.
Tensor Third(const Tensor& fused, const TextConfig& c, int64_t i) {
  Tensor t(fused.dtype, static_cast<std::byte*>(fused.data) + i * c.head_dim * SizeOf(fused.dtype),
           {fused.dim(0), c.num_heads, c.head_dim});
  t.stride = {fused.stride[0], 3 * c.head_dim, 1};
  return t;
}

void NormOfAttended(const TrainPass& p, const TrainLayer& layer, const KeptLayer& kept,
                    const Tensor& out) {
  GatedNorm(p.queue, {.x = kept.attended,
                      .gate = kept.gate,
                      .weight = layer.norm.value,
                      .eps = static_cast<float>(p.config.lightning_norm_eps),
                      .width = kept.attended.dim(1),
                      .out = out});
}

}  // namespace

void LightningForward(const TrainPass& p, const TrainLayer& layer, const KeptLayer& kept,
                      const Tensor& x, const Tensor& out) {
  const int64_t width = kept.attended.dim(1);
  Scratch scratch(p.queue);
  const Tensor fused = RoomFor(scratch, p.type, kept.silu, p.rows, 3 * width);
  const Tensor normed = RoomFor(scratch, p.type, kept.gated, p.rows, width);
  MatMulSilu(p.queue, {.a = x, .b = layer.inputs.weight, .c = kept.inputs, .transpose_b = true},
             {.x = kept.qkv, .out = fused});
  LightningPass(p.queue, {.q = Third(fused, p.config, 0),
                          .k = Third(fused, p.config, 1),
                          .v = Third(fused, p.config, 2),
                          .slope = layer.slope,
                          .cu_seqlens = p.cu_seqlens,
                          .out = ByHead(kept.attended, p.config.head_dim),
                          .borders = kept.borders});
  NormOfAttended(p, layer, kept, normed);
  MatMul(p.queue, {.a = normed, .b = layer.out.weight, .c = out, .transpose_b = true});
}

void LightningBackwardBlock(const TrainPass& p, const TrainLayer& layer, const KeptLayer& kept,
                            const Tensor& x, const Tensor& d_out, const Tensor& d_x) {
  const int64_t width = kept.attended.dim(1);
  Scratch scratch(p.queue);
  const Tensor fused = RoomFor(scratch, p.type, kept.silu, p.rows, 3 * width);
  const Tensor normed = RoomFor(scratch, p.type, kept.gated, p.rows, width);
  const Tensor d_inputs = scratch.GetRows(p.type, p.rows, 4 * width);
  const Tensor d_fused = Columns(d_inputs, 0, 3 * width);
  const Tensor d_gate = Columns(d_inputs, 3 * width, 4 * width);
  const Tensor d_attended = scratch.GetRows(p.type, p.rows, width);

  if (kept.gated.empty()) NormOfAttended(p, layer, kept, normed);
  MatMulMany(
      p.queue,
      std::vector<MatMulArgs>{
          {.a = d_out, .b = layer.out.weight, .c = d_attended},
          {.a = d_out, .b = normed, .c = layer.out.gradient, .transpose_a = true, .add = true}});
  GatedNormBackward(p.queue, {.x = kept.attended,
                              .gate = kept.gate,
                              .weight = layer.norm.value,
                              .eps = static_cast<float>(p.config.lightning_norm_eps),
                              .d_out = d_attended,
                              .d_x = d_attended,
                              .d_gate = d_gate,
                              .d_weight = layer.norm.gradient});
  if (kept.silu.empty()) SiluOf(p.queue, {.x = kept.qkv, .out = fused});
  LightningBackward(p.queue, {.q = Third(fused, p.config, 0),
                              .k = Third(fused, p.config, 1),
                              .v = Third(fused, p.config, 2),
                              .slope = layer.slope,
                              .cu_seqlens = p.cu_seqlens,
                              .d_out = ByHead(d_attended, p.config.head_dim),
                              .dq = Third(d_fused, p.config, 0),
                              .dk = Third(d_fused, p.config, 1),
                              .dv = Third(d_fused, p.config, 2),
                              .pre_q = Third(kept.qkv, p.config, 0),
                              .pre_k = Third(kept.qkv, p.config, 1),
                              .pre_v = Third(kept.qkv, p.config, 2),
                              .borders = kept.borders});
  InputsBackward(p, layer, x, d_inputs, d_x);
}

}  // namespace mm01
