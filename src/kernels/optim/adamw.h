// AdamW with decoupled weight decay, and the sum that clipping by the global norm needs.
//
//   g = gradient_scale * gradient
//   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//   value -= lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps) + lr weight_decay value
//
// Types     Everything is float32 and contiguous, of any rank; the constants are worked in double.
// Order     AdamW works element by element. SumOfSquaresOf adds in double: pieces of 16,384
//           numbers, 8 lanes each, on a GPU 256, then the pieces in order. Neither depends on the
//           number of threads.
// Errors    Shapes that disagree are our own bug: Check throws.
// Sources   Loshchilov and Hutter, arXiv:1711.05101, with the order of steps of PyTorch's AdamW.
#pragma once

#include <cstdint>
#include <span>

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

struct AdamWArgs {
  Tensor value;     // updated
  Tensor gradient;  // read
  Tensor m, v;      // first and second moment, updated; zeros before step 1
  double learning_rate = 0;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  int64_t step = 1;           // counted from 1
  double gradient_scale = 1;  // of clipping, say
};

void AdamW(Queue& queue, const AdamWArgs& args);

// The same for many tensors, on a GPU in one launch.
void AdamWMany(Queue& queue, std::span<const AdamWArgs> tensors);

// The squares of all elements, added up. On a GPU it waits for the queue.
double SumOfSquaresOf(Queue& queue, const Tensor& x);

// The sums of many tensors added in order, on a GPU in one launch and one wait.
double SumOfSquaresOfMany(Queue& queue, std::span<const Tensor> tensors);

}  // namespace mm01
