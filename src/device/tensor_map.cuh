// Descriptors for bulk tensor copies (TMA).
#pragma once

#include <cuda.h>

#include <cstdint>
#include <initializer_list>

namespace mm01::cuda {

// A tensor of up to five dims, the fastest first, of which a copy moves `box`. `strides` in bytes
// are of the dims after the first, and multiples of 16; a stride of 0 repeats the same memory.
struct TensorMapShape {
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  std::initializer_list<int64_t> dims;
  std::initializer_list<int64_t> strides;
  std::initializer_list<int> box;
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
};

// What lies outside the dims reads as zero and is not written. Costs about a microsecond of CPU
// time. A shape that the hardware does not take is our own bug.
CUtensorMap MakeTensorMap(const void* base, const TensorMapShape& shape);

}  // namespace mm01::cuda
