#include "kernels/attention/attention_backward.h"
#include "kernels/gemm/gemm_backward.h"
#include "kernels/rope/rope.h"
#include "kernels/rope/rope_backward.h"
#include "model/text01/training_blocks.h"

namespace mm01 {
namespace {

Tensor ByHead(const Tensor& rows, const TextConfig& c) {
  return Tensor(rows.dtype, rows.data, {rows.dim(0), rows.dim(1) / c.head_dim, c.head_dim});
}

}  // namespace

void SoftmaxForward(const TrainPass& p, const TrainLayer& layer, const KeptLayer& kept,
                    const Tensor& x, const Tensor& out) {
  MatMulMany(p.queue, std::vector<MatMulArgs>{
                          {.a = x, .b = layer.q.weight, .c = kept.q, .transpose_b = true},
                          {.a = x, .b = layer.k.weight, .c = kept.k, .transpose_b = true},
                          {.a = x, .b = layer.v.weight, .c = kept.v, .transpose_b = true}});
  Rope(p.queue, ByHead(kept.q, p.config), p.cos, p.sin);
  Rope(p.queue, ByHead(kept.k, p.config), p.cos, p.sin);
  AttentionPass(p.queue, {.q = ByHead(kept.q, p.config),
                          .k = ByHead(kept.k, p.config),
                          .v = ByHead(kept.v, p.config),
                          .cu_seqlens = p.cu_seqlens,
                          .out = ByHead(kept.attended, p.config),
                          .lse = kept.lse});
  MatMul(p.queue, {.a = kept.attended, .b = layer.out.weight, .c = out, .transpose_b = true});
}

void SoftmaxBackwardBlock(const TrainPass& p, const TrainLayer& layer, const KeptLayer& kept,
                          const Tensor& x, const Tensor& d_out, const Tensor& d_x) {
  Scratch scratch(p.queue);
  const Tensor d_attended = scratch.GetRows(p.type, p.rows, kept.q.dim(1));
  const Tensor d_q = scratch.GetRows(p.type, p.rows, kept.q.dim(1));
  const Tensor d_k = scratch.GetRows(p.type, p.rows, kept.k.dim(1));
  const Tensor d_v = scratch.GetRows(p.type, p.rows, kept.v.dim(1));

  MatMulMany(p.queue, std::vector<MatMulArgs>{{.a = d_out, .b = layer.out.weight, .c = d_attended},
                                              {.a = d_out,
                                               .b = kept.attended,
                                               .c = layer.out.gradient,
                                               .transpose_a = true,
                                               .add = true}});
  AttentionBackward(p.queue, {.q = ByHead(kept.q, p.config),
                              .k = ByHead(kept.k, p.config),
                              .v = ByHead(kept.v, p.config),
                              .cu_seqlens = p.cu_seqlens,
                              .out = ByHead(kept.attended, p.config),
                              .lse = kept.lse,
                              .d_out = ByHead(d_attended, p.config),
                              .dq = ByHead(d_q, p.config),
                              .dk = ByHead(d_k, p.config),
                              .dv = ByHead(d_v, p.config)});
  RopeBackward(p.queue, ByHead(d_q, p.config), p.cos, p.sin);
  RopeBackward(p.queue, ByHead(d_k, p.config), p.cos, p.sin);
  MatMulMany(p.queue,
             std::vector<MatMulArgs>{
                 {.a = d_q, .b = x, .c = layer.q.gradient, .transpose_a = true, .add = true},
                 {.a = d_k, .b = x, .c = layer.k.gradient, .transpose_a = true, .add = true},
                 {.a = d_v, .b = x, .c = layer.v.gradient, .transpose_a = true, .add = true},
                 {.a = d_q, .b = layer.q.weight, .c = d_x}});
  MatMul(p.queue, {.a = d_k, .b = layer.k.weight, .c = d_x, .add = true});
  MatMul(p.queue, {.a = d_v, .b = layer.v.weight, .c = d_x, .add = true});
}

}  // namespace mm01
