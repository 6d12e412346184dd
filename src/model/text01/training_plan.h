// What a training pass keeps for its way back, and what it works out again.
//
// Kept are the residual before each norm, the inputs and outputs of attention, the router's logits
// and the experts' first products: what costs matrix products to have again. Norms, SiLU, SwiGLU
// and gathered rows are cheap and large, and are recomputed; TrainOptions::keep says which are
// kept.
#pragma once

#include <cstdint>
#include <vector>

#include "device/buffer.h"
#include "device/queue.h"
#include "model/text01/config.h"
#include "model/text01/trainer_model.h"
#include "model/text01/training_blocks.h"
#include "model/text01/training_parameters.h"

namespace mm01 {

// Room for one pass of at most `max_tokens` rows.
struct KeptMemory {
  KeptMemory(Queue& queue, const TextConfig& config, DType activations,
             const TrainOptions& options);

  Buffer memory;
  std::vector<KeptLayer> layers;
  Tensor last;                         // [T, D]  the residual before the final norm
  DType type;                          // of activations
  std::vector<TrainMemoryLine> lines;  // bytes of each kind
};

// Room that the ops of one pass take from the queue at most, where documents have 64 tokens or
// more: shorter ones take a whole tile each in softmax attention.
int64_t WorkingBytes(const TextConfig& config, DType type, Device device, int64_t max_tokens);

// Lines of the kept memory, of the room that ops work in, and of what is recomputed.
std::vector<TrainMemoryLine> MemoryPlan(const TextConfig& config, const TrainOptions& options,
                                        const TrainParameters& parameters, const KeptMemory& kept);

}  // namespace mm01
