// attention.h on a GPU.
#pragma once

#include "kernels/attention/attention.h"

namespace mm01::cuda {

void KvStore(Queue& queue, const KvStoreArgs& args);
void Attention(Queue& queue, const AttentionArgs& args);
void MergeAttention(Queue& queue, const Tensor& out, const Tensor& lse, const Tensor& other,
                    const Tensor& other_lse);

}  // namespace mm01::cuda
