#include "infer/watchdog.h"

#include <chrono>
#include <utility>

namespace mm01::infer {
namespace {

constexpr int kTicks = 16;

}  // namespace

Watchdog::Watchdog(double seconds, std::function<void()> on_stuck)
    : on_stuck_(std::move(on_stuck)), thread_([this, seconds] { Watch(seconds); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void Watchdog::Watch(double seconds) {
  const std::chrono::duration<double> tick(seconds / kTicks);
  uint64_t seen = 0;
  int ticks = 0;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, tick, [&] { return stop_; })) {
    const uint64_t work = work_;
    const bool is_same = work % 2 == 1 && work == seen;
    seen = work;
    ticks = is_same ? ticks + 1 : 0;
    if (ticks == kTicks) on_stuck_();
  }
}

}  // namespace mm01::infer
