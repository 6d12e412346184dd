// Matrix products with weights:  out[m, n] = f(sum over k of x[m, k] w[n, k]).
//
// Letters   M rows (tokens), N outputs, K inputs. Rows of x and out may be strided.
// Types     x and out float32, on a GPU also bf16, each for itself; w float32, bf16 or int8,
//           decoded exactly; sums and f in float32, rounded once.
// Order     k is cut into blocks of 256 from 0, for int8 into its groups. A block is summed in one
//           chain from zero, an int8 one is multiplied by its scale, and blocks are added in order.
//           So a row's bits depend on that row and on w alone: not on M, on the
//           number of threads, or on where the row stands. A product over part of k (tensor ranks)
//           rounds differently.
// On a GPU  There are two orders: one for at most kFewRows rows (decode), one for more (prefill);
//           bf16 x and int8 w have a third, for at most kFewestRows. A row's bits are the same for
//           every M in the same range, and alone or through GemmMany.
//           With many rows of bf16 an int8 weight is rounded to bf16 on the way, and its f applied
//           to what has been rounded to the type of out. No kernel of the queue may write w without
//           a Wait after it: w is fetched while kernels ahead in the queue still run.
// Cost      2 M N K flops. One row reads every byte of w once and is as fast as memory.
// Errors    Shapes that disagree are our own bug: Check throws. Many rows on a GPU need cuBLASLt:
//           DeviceError where it is missing.
#pragma once

#include <cstdint>
#include <span>

#include "device/queue.h"
#include "kernels/gemm/weight.h"
#include "tensor/tensor.h"

namespace mm01 {

inline constexpr int64_t kFewestRows = 16, kFewRows = 128;

enum class Activation { kNone, kSilu };  // f: the number itself, or x sigmoid(x)

struct GemmArgs {
  Tensor x;         // [M, K]
  const Weight* w;  // [N, K]
  Tensor out;       // [M, N], overwritten
  Activation activation = Activation::kNone;
};

void Gemm(Queue& queue, const GemmArgs& args);

// Several products side by side, as one pass over the threads: the experts of a layer, or
// projections of the same rows. The same bits as one by one.
void GemmMany(Queue& queue, std::span<const GemmArgs> problems);

}  // namespace mm01
