// One value everywhere.
#pragma once

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

// x = value.  x: [T, D] float32, rows may be strided.
void Fill(Queue& queue, const Tensor& x, float value);

}  // namespace mm01
