// What the runtime reports becomes a DeviceError.
#pragma once

#include <cuda_runtime.h>

#include <source_location>

namespace mm01::cuda {

void CheckCuda(cudaError_t error, std::source_location where = std::source_location::current());

// After a launch: whether it was taken.
inline void CheckLaunch(std::source_location where = std::source_location::current()) {
  CheckCuda(cudaGetLastError(), where);
}

// Multiprocessors of the device in use, asked for once.
int Multiprocessors();

}  // namespace mm01::cuda
