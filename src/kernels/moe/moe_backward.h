// The mixture of experts in training. Between its products, which are plain MatMulMany over groups
// of rows, it is these steps, forward
//
//   MakeTrainDispatch  the router's choice; rows by expert, over capacity they are dropped, the
//   last
//                      tokens first
//   GatherRows         the rows of x
//   CombineRows        y_t = sum over its kept rows, by ascending expert, of weight * row
//   CombineAddNorm     the same, the residual and the norm behind it
//
// and back
//
//   GatherRows         of dy, weighted: the gradient of a row
//   RouteBackward      gradients of weights -> of logits
//   BalanceBackward    adds those of the auxiliary loss
//   CombineGradients   dx: of its rows, without weights, and of the router's product
//
// Letters   T tokens, E experts, k experts a token, R <= T k rows that are kept, D width, L layers.
// Types     float32, on a GPU rows also bf16; what concerns balance in double, on a GPU a token's
//           part of it in float32. On a GPU E is at most 256 and k at most 8.
// Order     a token's numbers depend on the token alone, sums over tokens are in order.
// Errors    Shapes that disagree are our own bug: Check throws.
#pragma once

#include <cstdint>
#include <vector>

#include "device/queue.h"
#include "kernels/moe/moe.h"
#include "kernels/norm/norm.h"
#include "tensor/tensor.h"

namespace mm01 {

// Where a pass keeps which row is whose, on the queue's device.
struct DispatchRoom {
  Tensor expert;  // [T, k]  int32, by ascending expert; so are
  Tensor share;   // [T, k]  weights, of dropped rows too
  Tensor row;     // [T, k]  int32; -1: dropped
  Tensor token;   // [T k]   int32, of each row; the first R are set
  Tensor weight;  // [T k]   of the row's token for this expert; the first R are set
};

struct TrainDispatch : DispatchRoom {
  // On the CPU.
  std::vector<int64_t> offset;      // [E + 1]  rows offset[e] .. offset[e+1]-1 are expert e's
  std::vector<int64_t> counts;      // [E]      rows routed here, dropped ones counted
  std::vector<double> probability;  // [E]      mean over T of the softmax over all E logits
  int64_t dropped = 0;

  int64_t num_rows() const { return offset.empty() ? 0 : offset.back(); }
};

struct TrainDispatchArgs {
  Tensor logits;  // [T, E]  float32
  DispatchRoom room;
  int64_t capacity = 0;  // an expert takes its first `capacity` tokens; 0: all
};

// The choice is that of Route (kernels/moe/moe.h). On a GPU the call waits for the counts.
TrainDispatch MakeTrainDispatch(Queue& queue, const TrainDispatchArgs& args);

// out[r] = x[token[r]].  x: [T, D], out: [R, D]; `weighted`: times the row's weight, else as it is.
void GatherRows(Queue& queue, const TrainDispatch& dispatch, const Tensor& x, bool weighted,
                const Tensor& out);

// y: [T, D] overwritten; rows: [R, D]; `weighted`: times the token's weight, else as they are.
void CombineRows(Queue& queue, const TrainDispatch& dispatch, const Tensor& rows, bool weighted,
                 const Tensor& y);

// AddNorm(norm) whose branch is the weighted rows of each token. norm.branch [T, D] is room for
// those; what it holds afterwards is not defined. On a GPU they are not rounded before they are
// added where all rows are of one type and of 256 numbers or fewer.
void CombineAddNorm(Queue& queue, const TrainDispatch& dispatch, const Tensor& rows,
                    const AddNormArgs& norm);

struct CombineGradientsArgs {
  Tensor rows;      // [R, D]
  Tensor d_logits;  // [T, E]
  Tensor router;    // [E, D]
  Tensor d_x;       // [T, D]  overwritten
};

// d_x = CombineRows(rows), not weighted, + d_logits router. On a GPU all are of one type; where
// there are few experts the sum is one chain in float32, rows and then logits.
void CombineGradients(Queue& queue, const TrainDispatch& dispatch,
                      const CombineGradientsArgs& args);

// d_logits [T, E] overwritten, from the gradients of the weights times the weights, [R]: the
// weights of a token are the softmax over the logits of its k experts. A dropped row's weight has
// no gradient of its own.
void RouteBackward(Queue& queue, const TrainDispatch& dispatch, const Tensor& weighted_gradient,
                   const Tensor& d_logits);

// How evenly the experts are used. With c the rows routed to an expert and m the mean over T of the
// softmax over all E logits, by layer l and expert e:
//
//   kPaper          sum over l of  (1 / E) sum over e of (c_le / T) m_le       [MM01] 2.1
//   kTransformers   E sum over e of (sum_l c_le / (L T)) (sum_l m_le / L)      its load balancing
//   loss
enum class AuxiliaryForm { kPaper, kTransformers };

class Balance {
 public:
  Balance(AuxiliaryForm form, int64_t num_experts) : form_(form), num_experts_(num_experts) {}

  // The layers one after the other; T is the same for all.
  void AddLayer(const TrainDispatch& dispatch);

  double Loss() const;
  // dLoss / dm_le / T, which is what the probability of one token weighs: [E].
  std::vector<double> Weights(int64_t layer) const;

 private:
  AuxiliaryForm form_;
  int64_t num_experts_;
  int64_t tokens_ = 0;
  std::vector<std::vector<double>> share_, mean_;  // [L][E]  c / T, m
};

// d_logits [T, E] += scale times the gradient of  sum over t, e of weight_e softmax(logits_t)_e.
void BalanceBackward(Queue& queue, const Tensor& logits, const std::vector<double>& weight,
                     double scale, const Tensor& d_logits);

}  // namespace mm01
