// Work that leaves the processor to other threads: those of a step wait for each other, so that one
// of them without a processor holds up all.
#pragma once

#include <functional>

namespace mm01 {

// From now on the calling thread leaves the processors to other threads that want them: it gets
// what they leave, and little else. Where the system has no such thing, nothing happens.
void LowerThreadPriority();

// Runs `work` on such a thread and waits for it. What it throws is thrown here. Costs some 50
// microseconds.
void RunAtLowPriority(const std::function<void()>& work);

}  // namespace mm01
