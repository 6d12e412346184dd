// The fields that /v1/completions and /v1/chat/completions share: how to write.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "infer/service.h"
#include "server/fields.h"
#include "server/served_model.h"

namespace mm01::server {

inline constexpr int64_t kMaxChoices = 8;
inline constexpr int64_t kMaxTopLogprobs = 20;
inline constexpr size_t kMaxStops = 4;
inline constexpr size_t kMaxStopBytes = 256;
inline constexpr size_t kMaxBiases = 1024;

struct GenerationFields {
  infer::GenerateOptions generate;
  std::optional<int64_t> max_tokens;
  std::vector<std::pair<int32_t, float>> logit_bias;
  double presence_penalty = 0, frequency_penalty = 0;
  int64_t n = 1;
  int64_t priority = 0;
  std::string salt;  // of "cache_salt"
  bool stream = false;
  bool include_usage = false;     // stream_options
  bool include_progress = false;  // stream_options
};

// A seed that is not given is drawn. What is wrong is left in `fields`.
GenerationFields ReadGenerationFields(Fields& fields, const ServedModel& model);

}  // namespace mm01::server
