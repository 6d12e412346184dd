// Runs a test on every SIMD target that is compiled in and that this machine has, not only on the
// best.
#pragma once

#include "kernels/simd.h"

#include <hwy/highway.h>

#include <cstdint>

#include <gtest/gtest.h>

namespace mm01 {

// The target whose bit is `target` serves every op until the scope ends.
class ScopedSimdTarget {
 public:
  explicit ScopedSimdTarget(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ~ScopedSimdTarget() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ScopedSimdTarget(const ScopedSimdTarget&) = delete;
  ScopedSimdTarget& operator=(const ScopedSimdTarget&) = delete;
};

// fn() or fn(target) under each.
template <typename F>
void OnEverySimdTarget(F&& fn) {
  for (int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    SCOPED_TRACE(hwy::TargetName(target));
    const ScopedSimdTarget scope(target);
    if constexpr (requires { fn(target); }) {
      fn(target);
    } else {
      fn();
    }
  }
}

}  // namespace mm01
