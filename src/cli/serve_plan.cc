#include "cli/serve_plan.h"

#include <fmt/core.h>

#include <functional>

#include "base/format.h"

namespace mm01::cli {
namespace {

constexpr int64_t kUsefulContext = 1024;  // a smaller one is no change to offer
constexpr int64_t kMostContext = int64_t{1} << 30;
constexpr int64_t kInt8Group = 128;

bool Fits(const TextConfig& config, const MemoryOptions& options, int64_t room) {
  const auto plan = PlanMemory(config, options);
  return plan.ok() && plan->total() <= room;
}

// The largest value from 1 to `high` for which `fits` holds, 0 where none; it holds for smaller
// ones.
int64_t Largest(int64_t high, const std::function<bool(int64_t)>& fits) {
  int64_t low = 0;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

int64_t LongestContext(const TextConfig& config, MemoryOptions options, int64_t room) {
  return Largest(kMostContext, [&](int64_t context) {
    options.context_tokens = context;
    return Fits(config, options, room);
  });
}

}  // namespace

std::string ServePlan::ToText() const {
  return fmt::format(
      "memory planned for {} sequences of {} tokens, {} available:\n{}snapshots   {}\n"
      "longest context for {} sequences: {} tokens\n",
      options.num_sequences, FormatCount(options.context_tokens), FormatByteCount(available_bytes),
      memory.ToTable(), FormatByteCount(snapshot_bytes), options.num_sequences,
      longest_context > 0 ? FormatCount(longest_context) : "none");
}

int64_t ServeStepRows(Device device) {
  return device == Device::kCpu ? 512 : 4096;
}

Result<ServePlan> PlanServe(const TextConfig& config, const MemoryOptions& options,
                            int64_t snapshot_bytes, int64_t available_bytes) {
  MM01_ASSIGN_OR_RETURN(const MemoryPlan memory, PlanMemory(config, options));
  return ServePlan{
      .options = options,
      .memory = memory,
      .snapshot_bytes = snapshot_bytes,
      .available_bytes = available_bytes,
      .longest_context = LongestContext(config, options, available_bytes - snapshot_bytes)};
}

Status CheckServeFits(const TextConfig& config, const ServePlan& plan) {
  if (plan.fits()) return Status::Ok();
  const int64_t room = plan.available_bytes - plan.snapshot_bytes;
  const std::string found = fmt::format("{} of memory are needed and {} are available",
                                        FormatByteCount(plan.memory.total() + plan.snapshot_bytes),
                                        FormatByteCount(plan.available_bytes));
  const auto wanted = [&](const std::string& change) {
    return Status::TooLarge(fmt::format("{}; {} would fit", found, change));
  };
  if (plan.longest_context >= kUsefulContext) {
    return wanted(fmt::format("--context {}", plan.longest_context));
  }
  MemoryOptions fewer = plan.options;
  const int64_t sequences = Largest(plan.options.num_sequences, [&](int64_t n) {
    fewer.num_sequences = n;
    return Fits(config, fewer, room);
  });
  if (sequences > 0) return wanted(fmt::format("--sequences {}", sequences));
  if (const int64_t left = plan.available_bytes - plan.memory.total(); left >= 0) {
    return wanted(fmt::format("--snapshot-memory {}", left >> 20));
  }
  MemoryOptions smaller = plan.options;
  smaller.weights = {DType::kI8, kInt8Group};
  smaller.kv = DType::kBF16;
  if (Fits(config, smaller, room)) return wanted("--weights int8");
  return Status::TooLarge(found +
                          "; no one change of --context, --sequences, --snapshot-memory or "
                          "--weights would make it fit");
}

}  // namespace mm01::cli
