#include "base/priority.h"

#include <sys/resource.h>

namespace mm01 {

void LowerThreadPriority() {
  constexpr int kNice = 5;
  // On Linux 0 is the calling thread, not the process.
  ::setpriority(PRIO_PROCESS, 0, kNice);
}

}  // namespace mm01
