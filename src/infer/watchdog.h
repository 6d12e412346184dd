// Notices work that does not end.
//
// Time is counted in ticks that this process lived through while one piece of work ran, not by the
// clock: a process that was stopped, or a machine that slept, is not taken for one that hangs.
//
// Threads   Begin and End by the thread that is watched. The watchdog's own calls `on_stuck`, once
//           for a piece of work, up to a sixteenth late; it must return.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

namespace mm01::infer {

class Watchdog {
 public:
  Watchdog(double seconds, std::function<void()> on_stuck);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void Begin() { ++work_; }
  void End() { ++work_; }

 private:
  void Watch(double seconds);

  const std::function<void()> on_stuck_;
  std::atomic<uint64_t> work_{0};  // odd while there is some
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace mm01::infer
