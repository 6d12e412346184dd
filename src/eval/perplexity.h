// How well a model predicts a text: nats a token, by position.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/status.h"
#include "infer/engine.h"

namespace mm01::eval {

struct PositionBucket {
  int64_t begin = 0;  // positions begin .. end-1 of the predicted token
  int64_t end = 0;
  int64_t num_tokens = 0;
  double nats = 0.0;  // summed
};

struct Perplexity {
  int64_t num_documents = 0;
  int64_t num_tokens = 0;               // predicted: all but the first of each document
  double nats = 0.0;                    // summed
  std::vector<PositionBucket> buckets;  // 0, 1, 2-3, 4-7, ... doubling, those with tokens

  double nats_per_token() const {
    return num_tokens ? nats / static_cast<double>(num_tokens) : 0.0;
  }
};

// Reads each document alone, from an empty state, and adds up -log p of every token after its
// first, in double. `progress` gets tokens read and in all, and stops the run by returning false.
Result<Perplexity> MeasurePerplexity(infer::Engine& engine,
                                     std::span<const std::vector<int32_t>> documents,
                                     const std::function<bool(int64_t, int64_t)>& progress = {});

}  // namespace mm01::eval
