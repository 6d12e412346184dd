// What the machine has to give.
#pragma once

#include <cstdint>

#include "device/device.h"

namespace mm01::infer {

int AvailableCores();  // that this process may run on
// That it could still take: free, or cached and given up on demand.
int64_t AvailableMemoryBytes(Device device = Device::kCpu);
int64_t PeakResidentBytes();  // the most memory this process ever held resident

}  // namespace mm01::infer
