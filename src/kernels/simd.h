// Which SIMD targets are compiled, and which loops are unrolled. Include before anything of
// Highway's.
#pragma once

#include "base/sanitized.h"

// Each target costs compile time. AVX3_DL adds nothing that the kernels use over AVX3, and
// processors that stop between SSE2, which every x86-64 has, and AVX2 are too slow to be worth more
// code. Sanitized, code is several times as large: AVX2 and SSE2 only, and loops are left whole.
//
// MM01_UNROLL(n) stands before a loop over at most n vectors that are to lie in registers.
#define MM01_PRAGMA(words) _Pragma(#words)
#ifdef MM01_SANITIZED
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3 | HWY_AVX3_DL)
#define MM01_UNROLL(n) MM01_PRAGMA(GCC unroll 1)
#else
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#define MM01_UNROLL(n) MM01_PRAGMA(GCC unroll n)
#endif
