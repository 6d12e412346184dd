// Threads that do what can wait.
#pragma once

namespace mm01 {

// From now on the calling thread leaves most of a processor to other threads that want it; a
// quarter or so stays. Where the system has no such thing, nothing happens.
void LowerThreadPriority();

}  // namespace mm01
