#include "device/device.h"

namespace mm01 {

const char* ToString(Device device) {
  return device == Device::kCpu ? "cpu" : "cuda";
}

#ifndef MM01_CUDA
Result<CudaInfo> FindCuda() {
  return Status::Unsupported("this mm01 was built without CUDA");
}
#endif

}  // namespace mm01
