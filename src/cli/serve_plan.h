// Whether a server fits the machine, said before it loads.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "planner/memory.h"

namespace mm01::cli {

struct ServePlan {
  MemoryOptions options;  // as asked for
  MemoryPlan memory;
  int64_t snapshot_bytes = 0;   // beside the plan
  int64_t available_bytes = 0;  // of the device
  int64_t longest_context = 0;  // that fits with everything else as asked for; 0: none

  bool fits() const { return memory.total() + snapshot_bytes <= available_bytes; }
  // Weights, state, KV cache, workspace, snapshots, and the longest context.
  std::string ToText() const;
};

// Of a step, which those who write wait for: enough to keep the device busy, and no more.
int64_t ServeStepRows(Device device);

Result<ServePlan> PlanServe(const TextConfig& config, const MemoryOptions& options,
                            int64_t snapshot_bytes, int64_t available_bytes);

// TooLarge where the plan does not fit, with the one change that would do: less context, fewer
// sequences, less memory for snapshots, or int8 weights.
Status CheckServeFits(const TextConfig& config, const ServePlan& plan);

}  // namespace mm01::cli
