// What this machine can do at best, measured: the yardsticks that benchmarks are held against.
#pragma once

#include <cstdint>
#include <string>

#include "device/buffer.h"
#include "device/queue.h"

namespace mm01::eval {

// Bytes a second that all threads together read from memory.
class ReadCeiling {
 public:
  // Over `bytes` bytes, which should be many times the cache.
  ReadCeiling(Queue& queue, int64_t bytes);
  // The best of several access patterns, each tried twice.
  double Measure() const;

 private:
  Queue& queue_;
  Buffer memory_;
};

struct GemmCeiling {
  double flops_per_second = 0.0;
  std::string library;  // the fastest of those the machine has; empty where there is none
};

// float32 [m, k] x [n, k]^T by well-known libraries (oneDNN, OpenBLAS), loaded at run time where
// they are installed: nothing of theirs is linked. Best of `repeats`.
GemmCeiling LibraryGemm(int num_threads, int64_t m, int64_t n, int64_t k, int repeats);

}  // namespace mm01::eval
