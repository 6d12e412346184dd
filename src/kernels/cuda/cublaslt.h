// Matrix products by cuBLASLt, which is loaded when first asked for.
//
//   out[m, n] = sum over k of x[m, k] w[n, k]
//
// Types     x and w both bf16, out bf16 or float32; or all float32, multiplied as such (no TF32).
//           Sums in float32.
// Layout    x, w and out begin at multiples of 16 bytes, and so do their rows.
// Order     k is not split among blocks, and one kernel is chosen for each (types, N, K), as if M
//           were large. So a row has the same bits for every M that this kernel takes.
// Memory    what that kernel asks for, from the queue's scratch, 64 MiB at most.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "device/queue.h"
#include "tensor/dtype.h"

namespace mm01::cuda {

// Ok, or Unsupported with the names of what was looked for. After the first call a look-up.
Status LoadCublasLt();

struct LibraryGemm {
  const void* x;
  int64_t ldx;  // from one row to the next, in elements
  const void* w;
  int64_t ldw;
  void* out;
  int64_t ldo;
  int64_t m, n, k;
  DType in_type;  // of x and w
  DType out_type;
};

// False if the library has no kernel for this product. Throws DeviceError if it is not there.
bool MultiplyByLibrary(Queue& queue, const LibraryGemm& product);

// Products of training, with either side as it is or transposed:
//
//   c[m, n] = or +=  sum over k of a[m, k] b[k, n]
//
// Types, layout and memory as above. k may be split among blocks, whose sums are then added in
// order: bits depend on the sizes, not on timing. A kernel is chosen for sizes rounded up to four
// bits, so that few are asked for where numbers of rows change from step to step.
struct LibraryMatMul {
  const void* a;  // [M, k], or [k, M] with transpose_a
  int64_t lda;    // from one row to the next, in elements
  const void* b;  // [k, N], or [N, k] with transpose_b
  int64_t ldb;
  void* c;  // [M, N]
  int64_t ldc;
  int64_t m, n, k;
  DType in_type;  // of a and b
  DType out_type;
  bool transpose_a = false;
  bool transpose_b = false;
  bool add = false;  // to what c holds
};

// False if the library has no kernel for this product. Throws DeviceError if it is not there.
bool MatMulByLibrary(Queue& queue, const LibraryMatMul& product);

}  // namespace mm01::cuda
