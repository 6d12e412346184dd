#include "base/thread_pool.h"

#include "base/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mm01 {
namespace {

// About 20 us on current machines: longer than the gap between two ops of a forward pass, far
// shorter than a person notices a busy core.
constexpr int kSpins = 2000;

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
  call_ = call;
  fn_ = fn;
  num_items_ = num_items;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  Work(0);
  for (int spins = 0;; ++spins) {
    const int busy = busy_.load(std::memory_order_acquire);
    if (busy == 0) break;
    if (spins < kSpins) {
      Pause();
    } else {
      busy_.wait(busy, std::memory_order_acquire);
    }
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::Work(int thread) {
  for (;;) {
    const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
    if (item >= num_items_) return;
    try {
      call_(fn_, item, thread);
    } catch (...) {
      std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
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
    Work(thread);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_all();
  }
}

}  // namespace mm01
