#include "kernels/activation/activation_backward.h"
#include "kernels/convert/convert.h"
#include "kernels/gemm/gemm_backward.h"
#include "model/text01/training_blocks.h"

namespace mm01 {
namespace {

bool IsRouted(const TrainLayer& layer) {
  return !layer.router.value.empty();
}

// Rows of expert e in a tensor of gathered rows. A dense FFN is one expert that has all rows.
struct Groups {
  const TrainPass& pass;
  const TrainLayer& layer;
  const TrainDispatch& dispatch;

  bool routed() const { return IsRouted(layer); }
  int64_t rows() const { return routed() ? dispatch.num_rows() : pass.rows; }
  Tensor Of(size_t e, const Tensor& t) const {
    return routed() ? t.Rows(dispatch.offset[e], dispatch.offset[e + 1]) : t.Rows(0, pass.rows);
  }

  // fn(expert, e, products) for each expert adds its products; then all of them run.
  template <typename F>
  void Multiply(F&& fn) const {
    std::vector<MatMulArgs> products;
    for (size_t e = 0; e < layer.experts.size(); ++e) fn(layer.experts[e], e, products);
    MatMulMany(pass.queue, products);
  }
};

// Fills `dispatch` from the router's logits, which it works out from float32 weights, as inference
// does.
void RouteTokens(const TrainPass& p, const TrainLayer& layer, KeptLayer& kept, const Tensor& x) {
  MatMul(p.queue, {.a = x, .b = layer.router.value, .c = kept.logits, .transpose_b = true});
  kept.dispatch = MakeTrainDispatch(
      p.queue, {.logits = kept.logits, .room = kept.room, .capacity = p.capacity});
}

// What the experts make of their rows, in scratch, or `out`, what the dense FFN makes of x.
Tensor MlpResults(Scratch& scratch, const TrainPass& p, const TrainLayer& layer, KeptLayer& kept,
                  const Tensor& x, const Tensor& out) {
  const Groups groups{p, layer, kept.dispatch};
  if (groups.routed()) RouteTokens(p, layer, kept, x);
  const int64_t rows = groups.rows(), ffn = p.config.ffn_size;
  Tensor in = x, results = out;
  if (groups.routed()) {
    in = RoomFor(scratch, p.type, kept.expert_x, rows, x.dim(1));
    results = scratch.GetRows(p.type, rows, x.dim(1));
    GatherRows(p.queue, kept.dispatch, x, false, in);
  }
  const Tensor hidden = RoomFor(scratch, p.type, kept.expert_hidden, rows, ffn);
  const Tensor inputs = kept.expert_inputs.Rows(0, rows);
  std::vector<MatMulArgs> first;
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    first.push_back({.a = groups.Of(e, in),
                     .b = layer.experts[e].w13.weight,
                     .c = groups.Of(e, inputs),
                     .transpose_b = true});
  }
  MatMulManySwiGlu(
      p.queue, first,
      {.gate = Columns(inputs, 0, ffn), .up = Columns(inputs, ffn, 2 * ffn), .out = hidden});
  groups.Multiply([&](const TrainExpert& w, size_t e, std::vector<MatMulArgs>& products) {
    products.push_back({.a = groups.Of(e, hidden),
                        .b = w.w2.weight,
                        .c = groups.Of(e, results),
                        .transpose_b = true});
  });
  return results;
}

}  // namespace

void MlpForward(const TrainPass& p, const TrainLayer& layer, KeptLayer& kept, const Tensor& x,
                const Tensor& out) {
  Scratch scratch(p.queue);
  const Tensor results = MlpResults(scratch, p, layer, kept, x, out);
  if (IsRouted(layer)) CombineRows(p.queue, kept.dispatch, results, true, out);
}

void MlpForwardAddNorm(const TrainPass& p, const TrainLayer& layer, KeptLayer& kept,
                       const Tensor& x, const AddNormArgs& norm) {
  Scratch scratch(p.queue);
  const Tensor results = MlpResults(scratch, p, layer, kept, x, norm.branch);
  if (IsRouted(layer)) {
    CombineAddNorm(p.queue, kept.dispatch, results, norm);
  } else {
    AddNorm(p.queue, norm);
  }
}

void MlpBackwardBlock(const TrainPass& p, const TrainLayer& layer, const KeptLayer& kept,
                      const MlpBackwardArgs& a) {
  const Groups groups{p, layer, kept.dispatch};
  const bool routed = groups.routed();
  const int64_t rows = groups.rows(), width = a.x.dim(1), ffn = p.config.ffn_size;
  Scratch scratch(p.queue);
  Tensor in = a.x, d_results = a.d_out, d_in = a.d_x, dots;
  if (routed) {
    in = RoomFor(scratch, p.type, kept.expert_x, rows, width);
    d_results = scratch.GetRows(p.type, rows, width);
    d_in = scratch.GetRows(p.type, rows, width);
    dots = Tensor(scratch.Get<float>(rows), {rows});
    if (kept.expert_x.empty()) GatherRows(p.queue, kept.dispatch, a.x, false, in);
    GatherRows(p.queue, kept.dispatch, a.d_out, true, d_results);
  }
  const bool has_hidden = !kept.expert_hidden.empty();
  const Tensor hidden = RoomFor(scratch, p.type, kept.expert_hidden, rows, ffn);
  const Tensor inputs = kept.expert_inputs.Rows(0, rows);
  const Tensor d_inputs = scratch.GetRows(p.type, rows, 2 * ffn);
  const Tensor d_gate = Columns(d_inputs, 0, ffn), d_up = Columns(d_inputs, ffn, 2 * ffn);
  groups.Multiply([&](const TrainExpert& w, size_t e, std::vector<MatMulArgs>& products) {
    products.push_back({.a = groups.Of(e, d_results), .b = w.w2.weight, .c = groups.Of(e, d_up)});
  });
  SwiGluBackward(p.queue, {.gate = Columns(inputs, 0, ffn),
                           .up = Columns(inputs, ffn, 2 * ffn),
                           .d_out = d_up,
                           .d_gate = d_gate,
                           .d_up = d_up,
                           .out = has_hidden ? Tensor() : hidden,
                           .dots = dots});
  const auto add_gradients = [&](const Tensor& d_y, const Tensor& x, TrainTensor TrainExpert::*of) {
    groups.Multiply([&](const TrainExpert& w, size_t e, std::vector<MatMulArgs>& products) {
      products.push_back({.a = groups.Of(e, d_y),
                          .b = groups.Of(e, x),
                          .c = (w.*of).gradient,
                          .transpose_a = true,
                          .add = true});
    });
  };
  add_gradients(d_results, hidden, &TrainExpert::w2);
  add_gradients(d_inputs, in, &TrainExpert::w13);
  groups.Multiply([&](const TrainExpert& w, size_t e, std::vector<MatMulArgs>& products) {
    products.push_back({.a = groups.Of(e, d_inputs), .b = w.w13.weight, .c = groups.Of(e, d_in)});
  });
  if (!routed) return;

  const int64_t experts = p.config.num_experts, padded = RouterWidth(p.config);
  const Tensor wide = scratch.GetRows(DType::kF32, p.rows, padded);
  const Tensor d_logits = Columns(wide, 0, experts);
  RouteBackward(p.queue, kept.dispatch, dots, d_logits);
  BalanceBackward(p.queue, kept.logits, a.balance, a.balance_scale, d_logits);
  Tensor rounded = d_logits;
  if (p.type != DType::kF32) {
    const Tensor converted = scratch.GetRows(p.type, p.rows, padded);
    Convert(p.queue, wide, converted);
    rounded = Columns(converted, 0, experts);
  }
  MatMul(p.queue,
         {.a = rounded, .b = a.x, .c = layer.router.gradient, .transpose_a = true, .add = true});
  CombineGradients(
      p.queue, kept.dispatch,
      {.rows = d_in, .d_logits = rounded, .router = layer.router.weight, .d_x = a.d_x});
}

}  // namespace mm01
