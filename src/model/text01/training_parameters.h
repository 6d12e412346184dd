// The parameters of a text model in training, by name and by place, with their gradients.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/buffer.h"
#include "device/queue.h"
#include "io/checkpoint.h"
#include "model/text01/config.h"
#include "model/text01/trainer_model.h"
#include "tensor/tensor.h"

namespace mm01 {

// Borrows from TrainParameters.
struct TrainTensor {
  Tensor value, gradient;  // [n, k] or [n], float32
  Tensor weight;           // what products read: value, or its copy in bf16
};

struct TrainExpert {
  TrainTensor w1, w2, w3;  // [F, D], [D, F], [F, D]
  TrainTensor w13;         // [2 F, D]  w1 above w3, the same memory
};

struct TrainLayer {
  LayerKind kind = LayerKind::kLightning;
  TrainTensor input_norm, mlp_norm;  // [D]
  TrainTensor qkv, gate, norm;       // lightning: [3 H K, D], [H K, D], [H K]
  TrainTensor q, k, v;               // softmax: [H K, D], [G K, D], [G K, D]
  TrainTensor inputs;                // qkv above gate, or q above k above v, the same memory
  TrainTensor out;                   // [D, H K]
  TrainTensor router;                // [E, D]; empty for a dense FFN
  std::vector<TrainExpert> experts;  // one for a dense FFN
  Tensor slope;                      // lightning: [H]
};

struct TrainParameters {
  // `products` is the type of `weight`.
  TrainParameters(Queue& queue, const TextConfig& config, DType products);
  TrainParameters(TrainParameters&&) = delete;  // the tensors lie in the buffers

  // Everything between the tensors included.
  int64_t num_floats() const { return values.bytes() / SizeOf(DType::kF32); }
  void Initialise(Queue& queue, const TextConfig& config, uint64_t seed);
  Status Load(Queue& queue, const TextConfig& config, const Checkpoint& checkpoint);

  // Makes the copies anew.
  void Changed(Queue& queue);

  Buffer values, gradients;
  Buffer copies;                    // bf16; none where products are of float32
  Buffer slopes;                    // [lightning layers, H]
  std::vector<TrainParameter> all;  // in the order of WantedTensors
  TrainTensor embedding, final_norm, head;
  std::vector<TrainLayer> layers;
};

}  // namespace mm01
