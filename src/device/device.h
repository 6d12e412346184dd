// Where memory lies and work runs.
//
// A build without the CUDA toolkit knows only the CPU; one with it also starts and works where
// there is no GPU.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "base/status.h"

namespace mm01 {

enum class Device { kCpu, kCuda };

const char* ToString(Device device);  // "cpu", "cuda"

// The third kind of error: what a device reported about work that was handed to it. The queue and
// its memory cannot be trusted afterwards.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The GPU that this process uses, the first that it sees.
struct CudaInfo {
  std::string name;
  int multiprocessors = 0;
  int64_t memory_bytes = 0;  // in all
  int64_t free_bytes = 0;    // now
  int64_t l2_bytes = 0;
};

// Unsupported, with the reason, where this build or this machine has no GPU that the kernels are
// made for (compute capability 9.0).
Result<CudaInfo> FindCuda();

}  // namespace mm01
