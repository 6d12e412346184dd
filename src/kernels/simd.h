// Which SIMD targets are compiled. Include before anything of Highway's.
#pragma once

// Each target costs compile time. AVX3_DL adds nothing that the kernels use over AVX3, and
// processors that stop between SSE2, which every x86-64 has, and AVX2 are too slow to be worth more
// code.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MM01_SANITIZED
#endif
#endif
#ifdef MM01_SANITIZED  // their code is large: AVX2, and the SSE2 that always is
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3 | HWY_AVX3_DL)
#else
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#endif
