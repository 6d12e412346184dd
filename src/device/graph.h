// Work that a GPU does again and again with other numbers in the same memory, recorded once: a step
// of decoding is a hundred small kernels, and launching them one by one takes longer than they do.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "device/queue.h"

struct CUgraphExec_st;

namespace mm01 {

class GraphCache {
 public:
  GraphCache() = default;
  ~GraphCache();
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;

  // Runs `work`, which puts ops in the queue, or on a GPU from the third time on what it put there
  // the second time. `key` holds all that the ops depend on beside the contents of memory: sizes,
  // and addresses that the caller chose.
  void Run(Queue& queue, const std::vector<int64_t>& key, const std::function<void()>& work);

 private:
  std::map<std::vector<int64_t>, CUgraphExec_st*> graphs_;  // null: has run once
};

}  // namespace mm01
