// embed_backward.h on a GPU: rows are float32 or bf16, the table and its gradient float32. The ids
// go to the device with the call.
#pragma once

#include "kernels/embed/embed_backward.h"

namespace mm01::cuda {

void EmbedRows(Queue& queue, std::span<const int32_t> ids, const Tensor& table, const Tensor& out);
void EmbedBackward(Queue& queue, std::span<const int32_t> ids, const Tensor& d_out,
                   const Tensor& d_table);

}  // namespace mm01::cuda
