// The twins of lightning.h's ops on a GPU.
#pragma once

#include <cstdint>

#include "device/queue.h"
#include "kernels/lightning/lightning.h"
#include "tensor/tensor.h"

namespace mm01::cuda {

void Lightning(Queue& queue, const LightningArgs& args);
void LightningFinalState(Queue& queue, const LightningState& state, int64_t slot, int64_t position,
                         const Tensor& slope, const Tensor& out);
void LightningAddIncoming(Queue& queue, const Tensor& q, const Tensor& slope, const Tensor& s_in,
                          const Tensor& out);

}  // namespace mm01::cuda
