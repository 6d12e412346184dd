// A mixture of experts in four calls, so that ranks can talk between them:
//
//   Route      logits -> for each token its k experts and their weights
//   Dispatch   tokens sorted by expert, and their rows gathered
//   Experts    w2_e( SiLU(w1_e x) * w3_e x ) for each gathered row
//   Combine    y_t = sum over its experts, by ascending expert, of weight * row
//
// Letters   T tokens, E experts, k experts a token, R = T k gathered rows, D width, F expert width.
// Types     float32, but for the weights.
// Order     every row's bits depend on the token alone: Combine adds by ascending expert, as the
//           released code does, and Experts keeps a row's bits whoever is gathered with it.
// Errors    Shapes that disagree are our own bug: Check throws.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/queue.h"
#include "kernels/gemm/weight.h"
#include "tensor/tensor.h"

namespace mm01 {

struct RouteArgs {
  Tensor logits;   // [T, E]
  Tensor experts;  // [T, k]  int32, by falling probability; the lower expert first among equals
  Tensor weights;  // [T, k]  softmax over the k kept logits, which equals softmax over all,
                   // renormalised
};

void Route(Queue& queue, const RouteArgs& args);

// Which rows go where: rows offset[e] .. offset[e+1]-1 are expert e's, in the order of their
// tokens.
struct Dispatch {
  std::vector<int64_t> offset;  // [E + 1]
  std::vector<int64_t> token;   // [R]     the token of each gathered row
  std::vector<int64_t> row;  // [T, k]  the gathered row of each token's choice, by ascending expert
  std::vector<float> weight;  // [T, k]  its weight
  int64_t k = 0;

  int64_t num_rows() const { return static_cast<int64_t>(token.size()); }
};

Dispatch MakeDispatch(const Tensor& experts, const Tensor& weights, int64_t num_experts);

// out[r] = x[token[r]].  x: [T, D], out: [R, D]
void GatherRows(Queue& queue, const Tensor& x, std::span<const int64_t> token, const Tensor& out);

struct ExpertWeights {
  Weight w1, w2, w3;  // [F, D], [D, F], [F, D]
};

struct ExpertsArgs {
  Tensor x;                                // [R, D]
  std::span<const int64_t> offset;         // [E + 1]
  std::span<const ExpertWeights> experts;  // [E]
  Tensor out;                              // [R, D]
};

void Experts(Queue& queue, const ExpertsArgs& args);

// y: [T, D] overwritten; rows: [R, D]
void Combine(Queue& queue, const Dispatch& dispatch, const Tensor& rows, const Tensor& y);

}  // namespace mm01
