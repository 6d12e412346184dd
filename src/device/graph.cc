#include "device/graph.h"

#ifdef MM01_CUDA
#include "device/cuda_memory.h"
#endif

namespace mm01 {

#ifdef MM01_CUDA

GraphCache::~GraphCache() {
  for (const auto& [key, graph] : graphs_) cuda::FreeGraph(graph);
}

void GraphCache::Run(Queue& queue, const std::vector<int64_t>& key,
                     const std::function<void()>& work) {
  if (queue.device() == Device::kCpu) return work();
  const auto [at, first] = graphs_.try_emplace(key, nullptr);
  if (first) return work();  // libraries make their plans, and scratch memory settles
  if (!at->second) {
    constexpr size_t kMost = 256;
    if (graphs_.size() > kMost) {  // sizes that come once and never again
      for (const auto& [k, graph] : graphs_) cuda::FreeGraph(graph);
      graphs_.clear();
      return work();
    }
    at->second = cuda::Record(queue.stream(), work);
  }
  cuda::Replay(at->second, queue.stream());
}

#else

GraphCache::~GraphCache() = default;

void GraphCache::Run(Queue&, const std::vector<int64_t>&, const std::function<void()>& work) {
  work();
}

#endif

}  // namespace mm01
