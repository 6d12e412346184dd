// The embedding in training: rows of a float32 table, and the sums of their gradients.
//
// Letters   T rows, D width, V vocabulary.
// Types     float32; on a GPU out and d_out may be bf16. The ids lie in the CPU's memory.
// Order     the gradients of one id are added in the order of its rows, to what the table's
//           gradient held (on a GPU in sums of 64 rows where an id has more): no bit depends on the
//           number of threads.
// Errors    An id outside V is our own bug by now: Check throws.
#pragma once

#include <cstdint>
#include <span>

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

// out[t] = table[ids[t]].  table: [V, D], out: [T, D]
void EmbedRows(Queue& queue, std::span<const int32_t> ids, const Tensor& table, const Tensor& out);

// d_table[ids[t]] += d_out[t].  d_out: [T, D], d_table: [V, D]
void EmbedBackward(Queue& queue, std::span<const int32_t> ids, const Tensor& d_out,
                   const Tensor& d_table);

}  // namespace mm01
