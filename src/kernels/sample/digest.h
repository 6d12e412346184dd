// What sample_rows.h gets of logits from the device.
//
// Letters   R rows, V vocabulary, k the most tokens wanted, C = ceil(V / kDigestChunk).
// Errors    Shapes that disagree are our own bug: Check throws.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

inline constexpr int64_t kDigestChunk = 1024;  // tokens

struct Digest {
  bool sound = true;         // false: NaN, +infinity, or nothing but masked tokens; all else unset
  std::vector<int32_t> id;   // of the k largest logits, ascending; fewer if fewer are unmasked.
                             // Of equals the lower ids
  std::vector<float> value;  // their logits; empty where k is 1, whose value nobody needs
  std::vector<double> weight;  // [C] sums of exp((x - largest) / t) over chunks of tokens; empty
                               // where t is 0
};

struct DigestArgs {
  Tensor logits;                        // [R, V] float32
  int64_t most;                         // k
  std::span<const double> temperature;  // [R] t, in the CPU's memory
};

std::vector<Digest> DigestRows(Queue& queue, const DigestArgs& args);

}  // namespace mm01
