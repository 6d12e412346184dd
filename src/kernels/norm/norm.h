// RMSNorm in the three places where the model has it.
//
//   norm(x) = weight * x / sqrt(mean(x^2) + eps)
//
// Letters   T rows, D width; rows may be strided. On a GPU D is at most 49,152.
// Types     Everything is float32. On a GPU x, branch, gate, sum and out may each be bf16, and are
//           worked in float32; out is the norm of the sum before that is rounded.
// Order     A row's sum of squares is taken in 16 lanes, on a GPU in more, folded in halves: a
//           function of the row alone.
// Errors    Shapes that disagree are our own bug: Check throws.
#pragma once

#include <cstdint>

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

struct AddNormArgs {
  Tensor x;       // [T, D]  what the residual carries
  Tensor branch;  // [T, D]  a sub-layer's output; may be empty: then sum = x, and alpha must be 1
  float alpha = 1.0f;
  float beta = 1.0f;
  Tensor weight;  // [D]
  float eps = 1e-5f;
  Tensor
      sum;  // [T, D]  alpha x + beta branch; may be x or branch itself, or empty: nobody reads it
  Tensor out;  // [T, D]  norm(sum); may be x itself, not sum
};

// DeepNorm's residual and the norm that follows it, in one pass over the row.
void AddNorm(Queue& queue, const AddNormArgs& args);

struct AddResidualArgs {
  Tensor x, branch;  // [T, D]
  float alpha = 1.0f;
  float beta = 1.0f;
  Tensor sum;  // [T, D]  may be x or branch itself
};

// sum = alpha x + beta branch, where the norm belongs to somebody else.
void AddResidual(Queue& queue, const AddResidualArgs& args);

// The squares of each row of x [T, D] added up, for ranks that hold D in parts: out [T].
void SumOfSquares(Queue& queue, const Tensor& x, const Tensor& out);

struct GatedNormArgs {
  Tensor x;       // [T, D]
  Tensor gate;    // [T, D]
  Tensor weight;  // [D]
  float eps = 1e-6f;
  Tensor squares;  // [T]     the sum of squares over the whole row, from SumOfSquares; may be
                   //         empty where x is the whole row: then it is worked out here
  int64_t width;   //         numbers in the whole row, D or more
  Tensor out;      // [T, D]  may be x
};

// out = norm(x) * sigmoid(gate): the norm inside lightning attention.
void GatedNorm(Queue& queue, const GatedNormArgs& args);

}  // namespace mm01
