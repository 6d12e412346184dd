// A fixed set of threads that share loops.
//
// ParallelFor hands out items one by one, so which thread runs an item is not fixed. Results stay
// the same for any number of threads as long as an item's output depends on the item alone, and
// every kernel here is written so. A loop waits for its items and not for its threads: one that
// other programs keep from its core, and that has taken no item, holds nobody up.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace mm01 {

class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller: a pool of one starts no thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(item, thread) for item = 0 .. num_items-1 and thread = 0 .. num_threads-1, and returns
  // when all are done. The first exception an item throws is thrown here again. One caller at a
  // time; an item must not call ParallelFor of the same pool.
  template <typename F>
  void ParallelFor(int64_t num_items, F&& fn) {
    if (num_items <= 0) return;
    if (workers_.empty() || num_items == 1) {
      for (int64_t i = 0; i < num_items; ++i) fn(i, 0);
      return;
    }
    using Fn = std::remove_reference_t<F>;
    Run(
        num_items, [](void* f, int64_t i, int thread) { (*static_cast<Fn*>(f))(i, thread); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using Call = void (*)(void* fn, int64_t item, int thread);

  void Run(int64_t num_items, Call call, void* fn);
  void Work(uint32_t round, int thread);
  void WorkerLoop(int thread);

  std::vector<std::thread> workers_;
  Call call_ = nullptr;
  void* fn_ = nullptr;
  uint32_t num_items_ = 0;
  // The loop's number over how many of its items nobody has taken: a thread that comes late finds
  // another loop there, and leaves.
  std::atomic<uint64_t> left_{0};
  std::atomic<uint32_t> round_{0};
  std::atomic<uint32_t> done_{0};  // items
  std::atomic<bool> stop_{false};
  std::mutex error_mutex_;  // guards error_
  std::exception_ptr error_;
};

}  // namespace mm01
