// Which kernel a call of Attention takes, and MergeAttention.
#include <cmath>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/attention/attention_cuda.cuh"
#include "kernels/attention/attention_cuda.h"

namespace mm01::cuda {
namespace {

constexpr int64_t kMostTokens = 1 << 30;

Heads AsHeads(const Tensor& t) {
  Check(t.rank == 3 && t.stride[2] == 1, "Attention: rows are [T, heads, dim]");
  Check(t.dtype == DType::kF32 || t.dtype == DType::kBF16, "Attention: rows are float32 or bf16");
  return {t.data, t.stride[0], t.stride[1], t.dtype == DType::kBF16};
}

AttentionProblem Checked(const AttentionArgs& a) {
  AttentionProblem p{.q = AsHeads(a.q), .out = AsHeads(a.out), .kv = a.kv};
  Check(a.out.dtype == a.q.dtype && a.out.shape == a.q.shape, "Attention: out is not as q");
  Check(a.kv.k.rank == 3 && a.kv.v.rank == 3 && a.kv.k.shape == a.kv.v.shape,
        "Attention: pages are [P, G, B * K]");
  Check(a.kv.k.dtype == DType::kF32 || a.kv.k.dtype == DType::kBF16,
        "Attention: the cache is float32 or bf16");
  Check(a.kv.v.dtype == a.kv.k.dtype, "Attention: k and v differ in type");
  Check(a.kv.k_scale.empty() == a.kv.v_scale.empty(), "Attention: scales of k or v are missing");
  const int64_t rows = a.q.dim(0), dim = a.q.dim(2), kv_heads = a.kv.k.dim(1);
  Check(kv_heads > 0 && a.q.dim(1) % kv_heads == 0, "Attention: H is no multiple of G");
  Check(dim % 16 == 0 && dim <= 768, "Attention: the head dim is a multiple of 16, up to 768");
  Check(a.kv.k.dim(2) == dim * kKvPage, "Attention: pages are of another head dim");
  Check(rows < kMostTokens && a.block_table.dim(1) * kKvPage < kMostTokens,
        "Attention: too many tokens");
  Check(rows == 0 || a.max_rows > 0, "Attention: max_rows is missing");
  if (!a.lse.empty()) {
    Check(a.lse.dim(0) == rows && a.lse.dim(1) == a.q.dim(1), "Attention: lse is [T, H]");
    p.lse = a.lse.As<float, 2>().data;
    p.lse_row = a.lse.stride[0];
  }
  const int64_t count = a.position.dim(0);
  Check(a.cu_seqlens.dim(0) == count + 1 && count < 65536, "Attention: N is wrong");
  p.sequences = {.cu_seqlens = a.cu_seqlens.As<const int64_t, 1>().data,
                 .position = a.position.As<const int64_t, 1>().data,
                 .kv_start = a.kv_start.As<const int64_t, 1>().data,
                 .kv_length = a.kv_length.As<const int64_t, 1>().data,
                 .block_table = a.block_table.As<const int32_t, 2>().data,
                 .table_stride = a.block_table.stride[0],
                 .count = static_cast<int>(count)};
  p.num_rows = static_cast<int>(rows);
  p.heads = static_cast<int>(a.q.dim(1));
  p.kv_heads = static_cast<int>(kv_heads);
  p.group = p.heads / p.kv_heads;
  p.dim = static_cast<int>(dim);
  p.num_pages = static_cast<int>(a.kv.k.dim(0));
  p.max_rows = a.max_rows;
  p.table_width = a.block_table.dim(1);
  return p;
}

// Rows that can be moved 16 bytes at a time.
bool IsAligned(const void* data, int64_t row, int64_t head) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row % 8 == 0 && head % 8 == 0;
}

bool IsFast(const AttentionProblem& p) {
  return p.q.is_bf16 && p.kv.k.dtype == DType::kBF16 && (p.dim == 64 || p.dim == 128) &&
         p.kv.k_scale.empty() && p.num_pages > 0 && IsAligned(p.q.data, p.q.row, p.q.head) &&
         IsAligned(p.out.data, p.out.row, p.out.head) &&
         IsAligned(p.kv.k.data, p.kv.k.stride[0], p.kv.k.stride[1]) &&
         IsAligned(p.kv.v.data, p.kv.v.stride[0], p.kv.v.stride[1]);
}

// A warp a row and head.
__global__ void Merge(Heads out, float* lse, int64_t lse_row, Heads other, const float* other_lse,
                      int64_t other_row, int heads, int dim, int64_t items) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (item >= items) return;
  const int64_t row = item / heads, head = item % heads;
  const float mine = lse[row * lse_row + head], theirs = other_lse[row * other_row + head];
  __syncwarp();
  if (theirs == kNoKey) return;
  const float top = fmaxf(mine, theirs), ours = expf(mine - top), added = expf(theirs - top);
  const float sum = ours + added, a = ours / sum, b = added / sum;
  for (int i = threadIdx.x % 32; i < dim; i += 32) {
    const int64_t at = row * out.row + head * out.head + i;
    const float more = Load(other.data, other.is_bf16, row * other.row + head * other.head + i);
    Store(out.data, out.is_bf16, at, Load(out.data, out.is_bf16, at) * a + more * b);
  }
  if (threadIdx.x % 32 == 0) lse[row * lse_row + head] = top + logf(sum);
}

}  // namespace

float AttentionProblem::scale() const {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
}

void Attention(Queue& queue, const AttentionArgs& args) {
  const AttentionProblem p = Checked(args);
  if (p.num_rows == 0) return;
  if (!IsFast(p)) return PlainAttention(queue, p);
  if (p.max_rows > kDecodeRows || p.group > 16) return PrefillAttention(queue, p);
  DecodeAttention(queue, p);
}

void MergeAttention(Queue& queue, const Tensor& out, const Tensor& lse, const Tensor& other,
                    const Tensor& other_lse) {
  Check(out.shape == other.shape && lse.shape == other_lse.shape && lse.dim(0) == out.dim(0) &&
            lse.dim(1) == out.dim(1),
        "MergeAttention: shapes disagree");
  const int64_t items = lse.size();
  if (items == 0) return;
  constexpr int kWarps = 8;
  const auto blocks = static_cast<unsigned>((items + kWarps - 1) / kWarps);
  Merge<<<blocks, 32 * kWarps, 0, queue.stream()>>>(
      AsHeads(out), lse.As<float, 2>().data, lse.stride[0], AsHeads(other),
      other_lse.As<const float, 2>().data, other_lse.stride[0], static_cast<int>(out.dim(1)),
      static_cast<int>(out.dim(2)), items);
  CheckLaunch();
}

}  // namespace mm01::cuda
