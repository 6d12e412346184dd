// Lightning of one token a sequence: reads S and the rows since the border, writes the row.
//
// A CTA does 32 columns of V of a (sequence, head), so one sequence fills the chip and nothing of S
// is shared. Thread t holds columns 4 (t % 8) .. + 3 of the rows t / 8, t / 8 + 16, ... of S, in
// registers: all its loads are in flight before the first is used. The slices of a head work out
// the same scores; their k rows come from L2 but once.
#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/lightning/lightning_kernels.cuh"

namespace mm01::cuda {
namespace {

constexpr int kB = kLightningBlock;
constexpr int kSlice = 32;  // columns of V in a CTA
constexpr int kThreads = 128;
constexpr int kGroups = kThreads * 4 / kSlice;  // rows of S, or of V, that are read side by side
constexpr int kLanes = 16;                      // threads that share a dot product
constexpr int kRowsAtOnce = kThreads / kLanes;
constexpr int kScores = kB / kRowsAtOnce;  // dot products of such a group
static_assert(kScores == 8);

// The sum over 16 lanes of x[i], in lanes that have i in bits 3, 2, 1: a butterfly that halves what
// is still carried at each step.
__device__ __forceinline__ float SumOverLanes(float (&x)[kScores], int lane) {
#pragma unroll
  for (int bit = 8, count = 4; bit >= 2; bit /= 2, count /= 2) {
    const bool upper = lane & bit;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float mine = upper ? x[i + count] : x[i];
      const float other = upper ? x[i] : x[i + count];
      x[i] = mine + __shfl_xor_sync(0xffffffffu, other, bit);
    }
  }
  return x[0] + __shfl_xor_sync(0xffffffffu, x[0], 1);
}

// One (sequence, head, slice): the new row's q, k, v, and the slot's memory.
template <typename T, int kDim>
struct Item {
  Sequence sequence;
  int head, first_column, place;
  float slope;
  const T *q, *k, *v;
  T *k_rows, *v_rows;
  float* s;

  __device__ Item(const LightningParams& p, int n, int h, int slice)
      : sequence(SequenceAt(p, n)),
        head(h),
        first_column(slice * kSlice),
        place(sequence.begin),
        slope(p.slope[h]) {
    const int64_t at = (sequence.first_row + place) * p.row_stride + head * p.head_stride;
    q = static_cast<const T*>(p.q) + at;
    k = static_cast<const T*>(p.k) + at;
    v = static_cast<const T*>(p.v) + at + first_column;
    const int64_t kept = static_cast<int64_t>(sequence.slot) * p.heads + head;
    k_rows = static_cast<T*>(p.k_rows) + kept * kB * kDim;
    v_rows = static_cast<T*>(p.v_rows) + kept * kB * kDim + first_column;
    s = p.s + kept * kDim * kDim + first_column;
  }

  // kCount elements of row c of the block, from `at` on, of the slot or `fresh`; 0 after this row.
  template <int kCount>
  __device__ Vector<T, kCount> Row(const T* rows, const Vector<T, kCount>& fresh, int c,
                                   int at) const {
    Vector<T, kCount> x = {};
    if (c < place) x = Load<kCount>(rows + c * kDim + at);
    return c == place ? fresh : x;
  }
};

template <typename T, int kDim>
__device__ void KeepRow(const Item<T, kDim>& item) {
  constexpr int kVector = 16 / sizeof(T);
  const int at = item.place * kDim, i = static_cast<int>(threadIdx.x) % 64 * kVector;
  if (threadIdx.x >= 64) {
    if (i < kSlice) {
      *reinterpret_cast<Vector<T, kVector>*>(item.v_rows + at + i) = Load<kVector>(item.v + i);
    }
  } else if (item.first_column == 0 && i < kDim) {
    *reinterpret_cast<Vector<T, kVector>*>(item.k_rows + at + i) = Load<kVector>(item.k + i);
  }
}

// The block is complete: S = exp(-slope B) S + sum over c of exp(-slope (B - 1 - c)) k_c^T v_c.
template <typename T, int kDim>
__device__ void Fold(const Item<T, kDim>& item, float4 (&s)[kDim / kGroups]) {
  __shared__ T k_rows[kB][kDim];
  __shared__ float4 v_rows[kB][kSlice / 4];
  const int thread = threadIdx.x, group = thread / 8, quad = thread % 8;
  constexpr int kPart = kDim / kLanes;
  const int first = thread % kLanes * kPart;
  const auto fresh_k = Load<kPart>(item.k + first);
  for (int c = thread / kLanes; c < kB; c += kRowsAtOnce) {
    *reinterpret_cast<Vector<T, kPart>*>(&k_rows[c][first]) =
        item.Row(item.k_rows, fresh_k, c, first);
  }
  const auto fresh_v = Load<4>(item.v + quad * 4);
  for (int c = group; c < kB; c += kGroups) {
    const auto x = item.Row(item.v_rows, fresh_v, c, quad * 4);
    const float decay = DecayPower(item.slope, kB - 1 - c);
    v_rows[c][quad] = {x[0] * decay, x[1] * decay, x[2] * decay, x[3] * decay};
  }
  __syncthreads();
  const float forget = BlockForget(item.slope);
#pragma unroll
  for (float4& x : s) {
    x = {fmaf(-forget, x.x, x.x), fmaf(-forget, x.y, x.y), fmaf(-forget, x.z, x.z),
         fmaf(-forget, x.w, x.w)};
  }
#pragma unroll 4
  for (int c = 0; c < kB; ++c) {
    const float4 v = v_rows[c][quad];
#pragma unroll
    for (int i = 0; i < kDim / kGroups; ++i) {
      const float k = Widen(k_rows[c][group + i * kGroups]);
      s[i] = {fmaf(k, v.x, s[i].x), fmaf(k, v.y, s[i].y), fmaf(k, v.z, s[i].z),
              fmaf(k, v.w, s[i].w)};
    }
  }
#pragma unroll
  for (int i = 0; i < kDim / kGroups; ++i) {
    *reinterpret_cast<float4*>(item.s + (group + i * kGroups) * kDim + quad * 4) = s[i];
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 4 : 3)
    Decode(const __grid_constant__ LightningParams p) {
  constexpr int kSlices = kDim / kSlice, kPart = kDim / kLanes;
  __shared__ float q_row[kDim], scores[kB];
  __shared__ float4 sums[kThreads / 32][kSlice / 4];
  AllowNextKernel();
  AwaitEarlierKernels();
  const int thread = threadIdx.x, group = thread / 8, quad = thread % 8;
  const int unit = static_cast<int>(blockIdx.x) / kSlices;
  const Item<T, kDim> item(p, unit / p.heads, unit % p.heads,
                           static_cast<int>(blockIdx.x) % kSlices);
  if (item.sequence.total == 0) return;
  const int place = item.place;

  float4 s[kDim / kGroups];
#pragma unroll
  for (int i = 0; i < kDim / kGroups; ++i) {
    const float* row = item.s + (group + i * kGroups) * kDim + quad * 4;
    s[i] = item.sequence.fresh ? float4{0, 0, 0, 0} : __ldcs(reinterpret_cast<const float4*>(row));
  }
  const int first = thread % kLanes * kPart;
  const auto fresh_k = Load<kPart>(item.k + first);
  Vector<T, kPart> k[kScores];
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    k[i] = item.Row(item.k_rows, fresh_k, thread / kLanes + i * kRowsAtOnce, first);
  }
  const auto fresh_v = Load<4>(item.v + quad * 4);
  Vector<T, 4> v[kB / kGroups];
#pragma unroll
  for (int i = 0; i < kB / kGroups; ++i) {
    v[i] = item.Row(item.v_rows, fresh_v, group + i * kGroups, quad * 4);
  }
  const auto q = Load<kPart>(item.q + first);
  if (thread < kDim) q_row[thread] = Widen(item.q[thread]);
  KeepRow(item);

  float dots[kScores];
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    dots[i] = 0;
#pragma unroll
    for (int j = 0; j < kPart; ++j) dots[i] = fmaf(q[j], k[i][j], dots[i]);
  }
  const float dot = SumOverLanes(dots, thread);
  if (thread % 2 == 0) {
    const int c = thread / kLanes + thread % kLanes / 2 * kRowsAtOnce;
    scores[c] = c <= place ? dot * DecayPower(item.slope, place - c) : 0.0f;
  }
  __syncthreads();

  float4 o = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < kDim / kGroups; ++i) {
    const float x = q_row[group + i * kGroups];
    o = {fmaf(x, s[i].x, o.x), fmaf(x, s[i].y, o.y), fmaf(x, s[i].z, o.z), fmaf(x, s[i].w, o.w)};
  }
  const float decay = DecayPower(item.slope, place + 1);
  o = {o.x * decay, o.y * decay, o.z * decay, o.w * decay};
#pragma unroll
  for (int i = 0; i < kB / kGroups; ++i) {
    const float x = scores[group + i * kGroups];
    o = {fmaf(x, v[i][0], o.x), fmaf(x, v[i][1], o.y), fmaf(x, v[i][2], o.z),
         fmaf(x, v[i][3], o.w)};
  }
#pragma unroll
  for (int bit = 8; bit <= 16; bit *= 2) {
    o.x += __shfl_xor_sync(0xffffffffu, o.x, bit);
    o.y += __shfl_xor_sync(0xffffffffu, o.y, bit);
    o.z += __shfl_xor_sync(0xffffffffu, o.z, bit);
    o.w += __shfl_xor_sync(0xffffffffu, o.w, bit);
  }
  if (thread % 32 < 8) sums[thread / 32][quad] = o;
  __syncthreads();
  if (thread < kSlice) {
    const auto* sum = reinterpret_cast<const float*>(sums);
    const float total =
        sum[thread] + sum[thread + kSlice] + sum[thread + 2 * kSlice] + sum[thread + 3 * kSlice];
    static_cast<T*>(p.out)[(item.sequence.first_row + place) * p.out_row_stride +
                           item.head * p.out_head_stride + item.first_column + thread] =
        Narrow<T>(total);
  }
  if (place == kB - 1) Fold(item, s);
}

template <typename T, int kDim>
void Launch(Queue& queue, const LightningParams& p) {
  const unsigned ctas =
      static_cast<unsigned>(p.num_seqs) * static_cast<unsigned>(p.heads) * (kDim / kSlice);
  LaunchOverlapped(queue, Decode<T, kDim>, dim3(ctas), dim3(kThreads), 0, p);
}

}  // namespace

void LaunchDecode(Queue& queue, DType dtype, const LightningParams& p) {
  Check(p.dim == 64 || p.dim == 128, "LaunchDecode: head dim 64 or 128");
  if (dtype == DType::kBF16) {
    p.dim == 128 ? Launch<__nv_bfloat16, 128>(queue, p) : Launch<__nv_bfloat16, 64>(queue, p);
  } else {
    p.dim == 128 ? Launch<float, 128>(queue, p) : Launch<float, 64>(queue, p);
  }
}

}  // namespace mm01::cuda
