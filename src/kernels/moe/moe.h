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

inline constexpr int64_t kFewMoeRows = 128;  // rows T k that take a GPU's path for decode

struct MoeArgs {
  Tensor x;                                // [T, D]  on a GPU float32 or bf16
  const Weight* router;                    // [E, D]  float32
  int64_t k = 0;                           //         experts a token
  std::span<const ExpertWeights> experts;  // [E]     on a GPU one stack (Weight::Stack)
  Tensor logits;                           // [T, E]  float32, the router's, for those who look
  Tensor out;                              // [T, D]  as x
};

// The whole layer where one rank has all experts: router, Route, Dispatch, Experts and Combine,
// with the bits of the calls one by one.
//
// On a GPU E <= 256, k <= 8, and x is float32 or bf16. With bf16 there are two orders of sums, one
// for T k up to kFewMoeRows (decode) and one for more (prefill); a token's bits are the same for
// every T on the same side. The products of w1 and w3 meet in float32, h is rounded to bf16; with
// many rows so are an expert's results, and an int8 weight times its scale. With few, int8 is exact
// and each expert chosen is read once. float32 has one order for all T.
void Moe(Queue& queue, const MoeArgs& args);

}  // namespace mm01
