// One step of the model over a packed batch: any number of new tokens for each of several
// sequences. Prefill and decode are the same call.
//
// Letters   T rows (tokens of all sequences end to end), N sequences, D hidden size, V vocabulary.
// Order     a row's numbers depend on its sequence alone, to the bit: not on chunking, on who else
// is
//           in the batch, or on the number of threads.
// Errors    The state must have room (TextState::Reserve) and ids must be in the vocabulary:
// anything
//           else here is our own bug.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/graph.h"
#include "device/queue.h"
#include "model/text01/state.h"
#include "model/text01/weights.h"
#include "parallel/mesh.h"
#include "tensor/tensor.h"

namespace mm01 {

struct TextBatch {
  struct Sequence {
    int32_t slot = 0;
    int64_t num_rows = 0;
  };
  std::vector<int32_t> ids;  // [T]  a token id, or -1 - m for row m of `embeddings`
  Tensor embeddings;         // [M, D] float32; may be empty
  std::vector<Sequence> sequences;
};

// Named points of the forward pass, for those who want to look.
enum class TapPoint { kEmbedding, kRouterLogits, kLayerOutput, kFinalNorm };

class TapSink {
 public:
  virtual ~TapSink() = default;
  // `layer` is -1 outside layers. `values` [T, *] are float32 in the CPU's memory, valid during the
  // call.
  virtual void Tap(TapPoint point, int64_t layer, const Tensor& values) = 0;
};

// What a forward pass works with. Borrows.
struct TextModel {
  Queue& queue;
  const TextWeights& weights;
  TextState& state;
  Mesh mesh = Mesh::Single();
  TapSink* taps = nullptr;
  GraphCache* graphs = nullptr;  // for steps of one token a sequence; may be null

  // For TapSink: `values` may be float32 or bf16, on any device.
  void Tap(TapPoint point, int64_t layer, const Tensor& values) const;
};

// Runs the batch, advances its sequences, and leaves what the head reads in `hidden` [T, D] of
// type TextWeights::activations(), on the model's device. `batch` is in the CPU's memory. With a
// sequence group of several ranks, each rank gives its own part of one prompt, in an empty slot
// opened at the position of its first row.
void Forward(const TextModel& model, const TextBatch& batch, const Tensor& hidden);

// The logits of rows of `hidden` [R, D]: out [R, V] float32 on the model's device, -inf where no
// token is.
void Logits(const TextModel& model, const Tensor& hidden, const Tensor& out);
// The same into the CPU's memory, R V numbers.
void LogitsToHost(const TextModel& model, const Tensor& hidden, std::span<float> out);

}  // namespace mm01
