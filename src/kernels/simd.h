// Which SIMD targets are compiled. Include before anything of Highway's.
#pragma once

// Each target costs compile time. AVX3_DL adds nothing that the kernels use over AVX3, and
// processors that stop between SSE2, which every x86-64 has, and AVX2 are too slow to be worth more
// code.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
