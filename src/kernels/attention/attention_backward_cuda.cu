// Which kernels a call takes, and the sum of d_out out of each row.
#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/attention/attention_backward_cuda.cuh"
#include "kernels/attention/attention_backward_cuda.h"
#include "kernels/cuda/elements.cuh"

namespace mm01::cuda {
namespace {

constexpr int64_t kMostRows = 1 << 30;
constexpr int kThreads = 256;

Heads AsHeads(const Tensor& t, int64_t heads, const Tensor& q) {
  Check(t.rank == 3 && t.dim(0) == q.dim(0) && t.dim(1) == heads && t.dim(2) == q.dim(2) &&
            t.stride[2] == 1 && (t.dtype == DType::kF32 || t.dtype == DType::kBF16),
        "Attention: rows are not [T, H, K] and [T, G, K] of float32 or bf16");
  return {t.data, t.stride[0], t.stride[1], t.dtype == DType::kBF16};
}

AttentionDocuments Checked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu,
                           const Tensor& out, const Tensor& lse) {
  Check(q.rank == 3 && k.rank == 3 && k.dim(1) > 0 && q.dim(1) % k.dim(1) == 0,
        "Attention: H is no multiple of G");
  const int64_t rows = q.dim(0), heads = q.dim(1), kv_heads = k.dim(1), dim = q.dim(2);
  Check(dim % 16 == 0 && dim <= 256, "Attention: the head dim is a multiple of 16, up to 256");
  Check(rows < kMostRows && (rows / 128 + cu.dim(0)) * heads < kMostRows,
        "Attention: too many rows and heads");
  Check(lse.rank == 2 && lse.dim(0) == rows && lse.dim(1) == heads && lse.stride[0] == heads,
        "Attention: lse is not [T, H], contiguous");
  AttentionDocuments a{.q = AsHeads(q, heads, q),
                       .k = AsHeads(k, kv_heads, q),
                       .v = AsHeads(v, kv_heads, q),
                       .out = AsHeads(out, heads, q)};
  a.lse = lse.As<float, 2>().data;
  a.cu_seqlens = cu.As<const int64_t, 1>().data;
  a.documents = static_cast<int>(cu.dim(0) - 1);
  a.rows = static_cast<int>(rows);
  a.heads = static_cast<int>(heads);
  a.kv_heads = static_cast<int>(kv_heads);
  a.group = a.heads / a.kv_heads;
  a.dim = static_cast<int>(dim);
  a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  return a;
}

bool IsFast(std::initializer_list<const Tensor*> rows, int dim) {
  return (dim == 64 || dim == 128) && std::all_of(rows.begin(), rows.end(), [](const Tensor* t) {
           return t->dtype == DType::kBF16 && HasAlignedRows(*t);
         });
}

// A warp a row and head.
__global__ void __launch_bounds__(kThreads)
    RowFactors(const __grid_constant__ AttentionDocuments a) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (item >= static_cast<int64_t>(a.rows) * a.heads) return;
  const int64_t row = item / a.heads, head = item % a.heads;
  float sum = 0.0f;
  for (int i = threadIdx.x % 32; i < a.dim; i += 32) {
    const float x = Load(a.out.data, a.out.is_bf16, row * a.out.row + head * a.out.head + i);
    const float y =
        Load(a.d_out.data, a.d_out.is_bf16, row * a.d_out.row + head * a.d_out.head + i);
    sum = fmaf(x, y, sum);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % 32 != 0) return;
  a.shift[head * a.rows + row] = a.lse[item] * kLog2E;
  a.delta[head * a.rows + row] = sum;
}

}  // namespace

void AttentionPass(Queue& queue, const AttentionPassArgs& args) {
  const AttentionDocuments a = Checked(args.q, args.k, args.v, args.cu_seqlens, args.out, args.lse);
  if (a.rows == 0) return;
  if (IsFast({&args.q, &args.k, &args.v, &args.out}, a.dim)) {
    AttentionPassHopper(queue, a);
  } else {
    AttentionPassGeneric(queue, a);
  }
}

void AttentionBackward(Queue& queue, const AttentionBackwardArgs& args) {
  AttentionDocuments a = Checked(args.q, args.k, args.v, args.cu_seqlens, args.out, args.lse);
  a.d_out = AsHeads(args.d_out, a.heads, args.q);
  a.dq = AsHeads(args.dq, a.heads, args.q);
  a.dk = AsHeads(args.dk, a.kv_heads, args.q);
  a.dv = AsHeads(args.dv, a.kv_heads, args.q);
  if (a.rows == 0) return;
  Scratch scratch(queue);
  const int64_t items = static_cast<int64_t>(a.rows) * a.heads;
  a.shift = scratch.Get<float>(items);
  a.delta = scratch.Get<float>(items);
  constexpr int kWarps = kThreads / 32;
  RowFactors<<<static_cast<unsigned>((items + kWarps - 1) / kWarps), kThreads, 0, queue.stream()>>>(
      a);
  CheckLaunch();
  if (IsFast({&args.q, &args.k, &args.v, &args.d_out, &args.dq, &args.dk, &args.dv}, a.dim)) {
    AttentionBackwardHopper(queue, a);
  } else {
    AttentionBackwardGeneric(queue, a);
  }
}

}  // namespace mm01::cuda
