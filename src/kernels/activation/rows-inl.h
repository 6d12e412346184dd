// Pointwise work cut into items of whole rows. Included through hwy/foreach_target.h.
#if defined(MM01_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MM01_ROWS_INL_H_
#undef MM01_ROWS_INL_H_
#else
#define MM01_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "device/queue.h"

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {

inline constexpr int64_t kFloatsPerItem = 32768;

// fn(row) for all rows, in items of about kFloatsPerItem numbers.
template <typename F>
void ForRows(Queue& queue, int64_t rows, int64_t width, F&& fn) {
  const int64_t step = std::max<int64_t>(1, kFloatsPerItem / std::max<int64_t>(1, width));
  queue.pool().ParallelFor((rows + step - 1) / step, [&](int64_t item, int) {
    const int64_t end = std::min(rows, (item + 1) * step);
    for (int64_t r = item * step; r < end; ++r) fn(r);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#endif  // include guard
