// Which SIMD targets are compiled. Include before anything of Highway's.
#pragma once

// AVX3_DL adds nothing that the kernels use over AVX3, and each target costs compile time.
#define HWY_DISABLED_TARGETS HWY_AVX3_DL
