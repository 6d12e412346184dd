#include "base/thread_pool.h"

#include <limits>

#include "base/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mm01 {
namespace {

// About 20 us on current machines: longer than the gap between two ops of a forward pass, far
// shorter than a person notices a busy core.
constexpr int kSpins = 2000;

constexpr int64_t kMostItems = std::numeric_limits<uint32_t>::max();

constexpr uint64_t Left(uint32_t round, uint32_t items) {
  return static_cast<uint64_t>(round) << 32 | items;
}

inline void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  Check(num_threads >= 1, "a pool needs a thread");
  workers_.reserve(static_cast<size_t>(num_threads - 1));
  for (int t = 1; t < num_threads; ++t) workers_.emplace_back([this, t] { WorkerLoop(t); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  round_.fetch_add(1);
  round_.notify_all();
  for (std::thread& w : workers_) w.join();
}

void ThreadPool::Run(int64_t num_items, Call call, void* fn) {
  Check(num_items <= kMostItems, "a loop of a pool has too many items");
  call_ = call;
  fn_ = fn;
  num_items_ = static_cast<uint32_t>(num_items);
  done_.store(0, std::memory_order_relaxed);
  const uint32_t round = round_.load(std::memory_order_relaxed) + 1;
  left_.store(Left(round, num_items_), std::memory_order_release);
  round_.store(round, std::memory_order_release);
  round_.notify_all();
  Work(round, 0);
  for (int spins = 0;; ++spins) {
    const uint32_t done = done_.load(std::memory_order_acquire);
    if (done == num_items_) break;
    if (spins < kSpins) {
      Pause();
    } else {
      done_.wait(done, std::memory_order_acquire);
    }
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::Work(uint32_t round, int thread) {
  for (;;) {
    uint64_t left = left_.load(std::memory_order_acquire);
    do {
      if (left >> 32 != round || static_cast<uint32_t>(left) == 0) return;
    } while (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire));
    // The loop cannot end, nor its fields change, before this item is done.
    const uint32_t num_items = num_items_;
    try {
      call_(fn_, num_items - static_cast<uint32_t>(left), thread);
    } catch (...) {
      std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_items) done_.notify_all();
  }
}

void ThreadPool::WorkerLoop(int thread) {
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; round_.load(std::memory_order_acquire) == seen; ++spins) {
      if (spins < kSpins) {
        Pause();
      } else {
        round_.wait(seen, std::memory_order_acquire);
      }
    }
    seen = round_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    Work(seen, thread);
  }
}

}  // namespace mm01
