// The same numbers in another type: bf16 copies of float32 weights, and gradients for products.
//
// Letters   n elements.
// Types     float32 or bf16 each; rounded to nearest, ties to even.
// Errors    Sizes that disagree are our own bug: Check throws.
#pragma once

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

// to = from, both contiguous and of n elements.
void Convert(Queue& queue, const Tensor& from, const Tensor& to);

}  // namespace mm01
