// KvStore on a GPU: one block a row, which turns the row's queries and writes its keys and values.
#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/attention/attention_cuda.cuh"
#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda/overlap.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;

struct Params {
  Heads q, k, v, k_pages, v_pages;  // pages: a page is a row, its kv heads are heads
  const float *cos, *sin, *k_scale, *v_scale;
  int64_t angle_row, scale_row;
  const int64_t *cu_seqlens, *position, *kv_start;
  const int32_t* block_table;
  int64_t table_stride;
  int num_seqs, num_rows, heads, kv_heads, dim, half;  // half: R / 2, 0 where nothing turns
};

template <int kCount>
__device__ __forceinline__ void LoadMany(const void* data, bool is_bf16, int64_t at,
                                         float (&x)[kCount]) {
  if constexpr (kCount == 1) {
    x[0] = Load(data, is_bf16, at);
  } else if (is_bf16) {
    static_assert(kCount == 8);
    const uint4 raw = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(data) + at);
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  } else {
    const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
    const float4 a = from[0], b = from[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
  }
}

template <int kCount>
__device__ __forceinline__ void StoreMany(void* data, bool is_bf16, int64_t at,
                                          const float (&x)[kCount]) {
  if constexpr (kCount == 1) {
    Store(data, is_bf16, at, x[0]);
  } else if (is_bf16) {
    __nv_bfloat162 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(data) + at) =
        *reinterpret_cast<const uint4*>(pairs);
  } else {
    float4* to = reinterpret_cast<float4*>(static_cast<float*>(data) + at);
    to[0] = make_float4(x[0], x[1], x[2], x[3]);
    to[1] = make_float4(x[4], x[5], x[6], x[7]);
  }
}

// Where a head's elements come from and go to.
struct Place {
  const Heads *from, *to;
  int64_t read, write;
  float factor;
};

template <int kCount>
__device__ __forceinline__ void Copy(const Place& at, int i) {
  float x[kCount];
  LoadMany(at.from->data, at.from->is_bf16, at.read + i, x);
#pragma unroll
  for (int e = 0; e < kCount; ++e) x[e] *= at.factor;
  StoreMany(at.to->data, at.to->is_bf16, at.write + i, x);
}

// Pairs (j, j + half) from j on.
template <int kCount>
__device__ __forceinline__ void Turn(const Params& p, const Place& at, int64_t row, int j) {
  float a[kCount], b[kCount], c[kCount], s[kCount];
  LoadMany(at.from->data, at.from->is_bf16, at.read + j, a);
  LoadMany(at.from->data, at.from->is_bf16, at.read + j + p.half, b);
  LoadMany(p.cos, false, row * p.angle_row + j, c);
  LoadMany(p.sin, false, row * p.angle_row + j, s);
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    const float u = a[e], v = b[e];
    a[e] = (u * c[e] - v * s[e]) * at.factor;
    b[e] = (v * c[e] + u * s[e]) * at.factor;
  }
  StoreMany(at.to->data, at.to->is_bf16, at.write + j, a);
  StoreMany(at.to->data, at.to->is_bf16, at.write + j + p.half, b);
}

template <int kCount>
__global__ void __launch_bounds__(kThreads) StoreRow(const __grid_constant__ Params p) {
  __shared__ int owner;
  AllowNextKernel();
  AwaitEarlierKernels();
  const int64_t row = blockIdx.x;
  for (int n = threadIdx.x; n < p.num_seqs; n += kThreads) {
    if (p.cu_seqlens[n] <= row && row < p.cu_seqlens[n + 1]) owner = n;
  }
  __syncthreads();
  const int n = owner;
  const int64_t at = p.position[n] - p.kv_start[n] + row - p.cu_seqlens[n];
  const int64_t page = p.block_table[n * p.table_stride + at / kKvPage], slot = at % kKvPage;

  const int turns = p.half / kCount, others = (p.dim - 2 * p.half) / kCount;
  const int q_items = p.heads * turns, k_items = p.kv_heads * (turns + others);
  const int items = q_items + k_items + p.kv_heads * (p.dim / kCount);
  for (int item = threadIdx.x; item < items; item += kThreads) {
    if (item < q_items) {
      const int64_t head = row * p.q.row + item / turns * p.q.head;
      Turn<kCount>(p, {&p.q, &p.q, head, head, 1.0f}, row, item % turns * kCount);
      continue;
    }
    const bool is_k = item < q_items + k_items;
    const int i = is_k ? item - q_items : item - q_items - k_items;
    const int of_head = is_k ? turns + others : p.dim / kCount, g = i / of_head, j = i % of_head;
    const Heads &from = is_k ? p.k : p.v, &to = is_k ? p.k_pages : p.v_pages;
    const float* scale = is_k ? p.k_scale : p.v_scale;
    const Place place = {&from, &to, row * from.row + g * from.head,
                         page * to.row + g * to.head + slot * p.dim,
                         scale ? 1.0f / scale[page * p.scale_row + g] : 1.0f};
    if (is_k && j < turns) {
      Turn<kCount>(p, place, row, j * kCount);
    } else {
      Copy<kCount>(place, is_k ? 2 * p.half + (j - turns) * kCount : j * kCount);
    }
  }
}

Heads AsHeads(const Tensor& t) {
  Check(t.rank == 3 && t.stride[2] == 1, "KvStore: tensors are [T, heads, dim] or [P, G, B * dim]");
  Check(t.dtype == DType::kF32 || t.dtype == DType::kBF16, "KvStore: float32 or bf16");
  return {t.data, t.stride[0], t.stride[1], t.dtype == DType::kBF16};
}

bool IsAligned(const Heads& h) {
  return reinterpret_cast<uintptr_t>(h.data) % 16 == 0 && h.row % 8 == 0 && h.head % 8 == 0;
}

void SetAngles(const KvStoreArgs& a, Params& p) {
  const auto cos = a.cos.As<const float, 2>(), sin = a.sin.As<const float, 2>();
  Check(cos.shape == sin.shape && cos.stride == sin.stride && cos.dim(0) == p.num_rows &&
            2 * cos.dim(1) <= p.dim,
        "KvStore: cos and sin are [T, R / 2]");
  p.cos = cos.data;
  p.sin = sin.data;
  p.angle_row = cos.stride[0];
  p.half = static_cast<int>(cos.dim(1));
  if (a.q.empty()) return;
  Check(a.q.dim(0) == p.num_rows && a.q.dim(2) == p.dim, "KvStore: q is [T, H, K]");
  p.q = AsHeads(a.q);
  p.heads = static_cast<int>(a.q.dim(1));
}

Params Checked(const KvStoreArgs& a) {
  Check(a.k.shape == a.v.shape && a.kv.k.shape == a.kv.v.shape && a.kv.k.dtype == a.kv.v.dtype &&
            a.kv.k.dim(1) == a.k.dim(1) && a.kv.k.dim(2) == a.k.dim(2) * kKvPage,
        "KvStore: rows and pages disagree");
  Params p{.k = AsHeads(a.k),
           .v = AsHeads(a.v),
           .k_pages = AsHeads(a.kv.k),
           .v_pages = AsHeads(a.kv.v),
           .cu_seqlens = a.cu_seqlens.As<const int64_t, 1>().data,
           .position = a.position.As<const int64_t, 1>().data,
           .kv_start = a.kv_start.As<const int64_t, 1>().data,
           .block_table = a.block_table.As<const int32_t, 2>().data,
           .table_stride = a.block_table.stride[0],
           .num_seqs = static_cast<int>(a.position.dim(0)),
           .num_rows = static_cast<int>(a.k.dim(0)),
           .kv_heads = static_cast<int>(a.k.dim(1)),
           .dim = static_cast<int>(a.k.dim(2))};
  if (!a.kv.k_scale.empty()) {
    p.k_scale = a.kv.k_scale.As<const float, 2>().data;
    p.v_scale = a.kv.v_scale.As<const float, 2>().data;
    p.scale_row = a.kv.k_scale.stride[0];
  }
  if (!a.cos.empty()) SetAngles(a, p);
  return p;
}

}  // namespace

void KvStore(Queue& queue, const KvStoreArgs& args) {
  const Params p = Checked(args);
  if (p.num_rows == 0) return;
  const bool wide = p.half % 8 == 0 && p.dim % 8 == 0 && IsAligned(p.k) && IsAligned(p.v) &&
                    IsAligned(p.q) && IsAligned(p.k_pages) && IsAligned(p.v_pages) &&
                    IsAligned({.data = const_cast<float*>(p.cos), .row = p.angle_row}) &&
                    IsAligned({.data = const_cast<float*>(p.sin), .row = p.angle_row});
  const auto blocks = static_cast<unsigned>(p.num_rows);
  if (wide) {
    LaunchOverlapped(queue, StoreRow<8>, blocks, kThreads, 0, p);
  } else {
    LaunchOverlapped(queue, StoreRow<1>, blocks, kThreads, 0, p);
  }
}

}  // namespace mm01::cuda
