// Whether this is a build under the address or the thread sanitizer, whose code is large and slow:
// kernels are compiled for fewer SIMD targets there, and a few tests take fewer samples.
#pragma once

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MM01_SANITIZED
#endif
#endif

namespace mm01 {

#ifdef MM01_SANITIZED
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace mm01
