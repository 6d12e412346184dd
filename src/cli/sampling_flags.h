// The flags that say how tokens are chosen.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/command_line.h"
#include "infer/generate.h"

namespace mm01::cli {

struct SamplingFlags {
  double temperature = 0.8;
  int64_t top_k = 0;
  double top_p = 0.95;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  std::optional<int64_t> seed;
  bool greedy = false;
  int64_t max_tokens = 256;
  std::vector<std::string> stop;
  bool ignore_end = false;
};

void AddSamplingFlags(Command& command, SamplingFlags* flags);

// A seed that is not given is drawn.
infer::GenerateOptions ToGenerateOptions(const SamplingFlags& flags);

}  // namespace mm01::cli
