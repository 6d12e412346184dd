#include "infer/machine.h"

#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace mm01::infer {
namespace {

// The number in the first line of a file such as memory.max; `otherwise` where there is none.
int64_t NumberIn(const char* path, int64_t otherwise) {
  std::ifstream in(path);
  int64_t n = 0;
  return in >> n ? n : otherwise;
}

int64_t FreeOfMachine() {
  std::ifstream in("/proc/meminfo");
  std::string name;
  int64_t kib = 0;
  for (std::string unit; in >> name >> kib; std::getline(in, unit)) {
    if (name == "MemAvailable:") return kib * 1024;
  }
  return std::numeric_limits<int64_t>::max();
}

}  // namespace

int AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

int64_t AvailableMemoryBytes(Device device) {
  if (device == Device::kCuda) {
    const Result<CudaInfo> gpu = FindCuda();
    return gpu.ok() ? gpu->free_bytes : 0;
  }
  constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
  const int64_t limit = NumberIn("/sys/fs/cgroup/memory.max", kNoLimit);
  const int64_t used = NumberIn("/sys/fs/cgroup/memory.current", 0);
  const int64_t free = FreeOfMachine();
  return limit == kNoLimit ? free : std::min(free, limit - used);
}

int64_t PeakResidentBytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace mm01::infer
