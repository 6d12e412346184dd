#include "kernels/attention/attention_backward.h"
#include "kernels/gemm/gemm_backward.h"
#include "kernels/rope/rope.h"
#include "kernels/rope/rope_backward.h"
#include "model/text01/training_blocks.h"

namespace mm01 {

void InputsBackward(const TrainPass& p, const TrainLayer& layer, const Tensor& x,
                    const Tensor& d_inputs, const Tensor& d_x) {
  MatMulMany(
      p.queue,
      std::vector<MatMulArgs>{
          {.a = d_inputs, .b = x, .c = layer.inputs.gradient, .transpose_a = true, .add = true},
          {.a = d_inputs, .b = layer.inputs.weight, .c = d_x}});
}

void SoftmaxForward(const TrainPass& p, const TrainLayer& layer, const KeptLayer& kept,
                    const Tensor& x, const Tensor& out) {
  MatMul(p.queue, {.a = x, .b = layer.inputs.weight, .c = kept.inputs, .transpose_b = true});
  Rope(p.queue, ByHead(kept.q, p.config.head_dim), p.cos, p.sin);
  Rope(p.queue, ByHead(kept.k, p.config.head_dim), p.cos, p.sin);
  AttentionPass(p.queue, {.q = ByHead(kept.q, p.config.head_dim),
                          .k = ByHead(kept.k, p.config.head_dim),
                          .v = ByHead(kept.v, p.config.head_dim),
                          .cu_seqlens = p.cu_seqlens,
                          .out = ByHead(kept.attended, p.config.head_dim),
                          .lse = kept.lse});
  MatMul(p.queue, {.a = kept.attended, .b = layer.out.weight, .c = out, .transpose_b = true});
}

void SoftmaxBackwardBlock(const TrainPass& p, const TrainLayer& layer, const KeptLayer& kept,
                          const Tensor& x, const Tensor& d_out, const Tensor& d_x) {
  Scratch scratch(p.queue);
  const Tensor d_attended = scratch.GetRows(p.type, p.rows, kept.q.dim(1));
  const int64_t width = kept.q.dim(1), kv_width = kept.k.dim(1);
  const Tensor d_inputs = scratch.GetRows(p.type, p.rows, width + 2 * kv_width);
  const Tensor d_q = Columns(d_inputs, 0, width);
  const Tensor d_k = Columns(d_inputs, width, width + kv_width);
  const Tensor d_v = Columns(d_inputs, width + kv_width, width + 2 * kv_width);

  MatMulMany(p.queue, std::vector<MatMulArgs>{{.a = d_out, .b = layer.out.weight, .c = d_attended},
                                              {.a = d_out,
                                               .b = kept.attended,
                                               .c = layer.out.gradient,
                                               .transpose_a = true,
                                               .add = true}});
  AttentionBackward(p.queue, {.q = ByHead(kept.q, p.config.head_dim),
                              .k = ByHead(kept.k, p.config.head_dim),
                              .v = ByHead(kept.v, p.config.head_dim),
                              .cu_seqlens = p.cu_seqlens,
                              .out = ByHead(kept.attended, p.config.head_dim),
                              .lse = kept.lse,
                              .d_out = ByHead(d_attended, p.config.head_dim),
                              .dq = ByHead(d_q, p.config.head_dim),
                              .dk = ByHead(d_k, p.config.head_dim),
                              .dv = ByHead(d_v, p.config.head_dim)});
  RopeBackward(p.queue, ByHead(d_q, p.config.head_dim), p.cos, p.sin);
  RopeBackward(p.queue, ByHead(d_k, p.config.head_dim), p.cos, p.sin);
  InputsBackward(p, layer, x, d_inputs, d_x);
}

}  // namespace mm01
