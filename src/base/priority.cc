#include "base/priority.h"

#include <sys/resource.h>

#include <exception>
#include <thread>

namespace mm01 {

void LowerThreadPriority() {
  constexpr int kNice = 19;
  // On Linux 0 is the calling thread, not the process.
  ::setpriority(PRIO_PROCESS, 0, kNice);
}

void RunAtLowPriority(const std::function<void()>& work) {
  std::exception_ptr error;
  std::thread thread([&] {
    LowerThreadPriority();
    try {
      work();
    } catch (...) {
      error = std::current_exception();
    }
  });
  thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace mm01
