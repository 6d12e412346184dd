// Lightning of one token a sequence: reads S and the rows since the border, writes the row.
//
// A CTA does 64 columns of V of a (sequence, head), so one sequence nearly fills the chip. One TMA
// copy brings its part of S to shared memory, the rows come to registers, and all of it is in
// flight before the first is used: 32 KB and up to 24 KB, in each of four CTAs a multiprocessor.
// The slices of a head work out the same scores; their k rows come from memory but once.
#include "base/check.h"
#include "device/check_cuda.cuh"
#include "device/tensor_map.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/lightning/lightning_kernels.cuh"

namespace mm01::cuda {
namespace {

constexpr int kB = kLightningBlock;
constexpr int kSlice = 64;  // columns of V in a CTA
constexpr int kThreads = 256;
constexpr int kLanes = 16;                  // threads that share a row of k, of v or of S
constexpr int kGroups = kThreads / kLanes;  // rows side by side
constexpr int kRowsEach = kB / kGroups;     // of k and v, in a thread
static_assert(kRowsEach == 4 && kSlice == 4 * kLanes);

template <typename T, int kDim>
struct alignas(128) Shared {
  float s[kDim][kSlice];
  T k_rows[kGroups][kDim];  // for Fold
  float4 v_rows[kGroups][kLanes];
  float q[kDim], scores[kB];
  float4 sums[kThreads / 32][kLanes];
  uint64_t full;
};

// The sum over 16 lanes of x[i], in lanes that have i in bits 3 and 2: a butterfly that first
// halves what is still carried.
__device__ __forceinline__ float SumOverLanes(float (&x)[kRowsEach], int lane) {
#pragma unroll
  for (int bit = 8, count = 2; count >= 1; bit /= 2, count /= 2) {
    const bool upper = lane & bit;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float mine = upper ? x[i + count] : x[i];
      const float other = upper ? x[i] : x[i + count];
      x[i] = mine + __shfl_xor_sync(0xffffffffu, other, bit);
    }
  }
  x[0] += __shfl_xor_sync(0xffffffffu, x[0], 2);
  return x[0] + __shfl_xor_sync(0xffffffffu, x[0], 1);
}

__device__ __forceinline__ float4 Scaled(float x, const float4& v) {
  return {x * v.x, x * v.y, x * v.z, x * v.w};
}
template <typename V>
__device__ __forceinline__ void AddScaled(float4& sum, float x, const V& v) {
  sum = {fmaf(x, v[0], sum.x), fmaf(x, v[1], sum.y), fmaf(x, v[2], sum.z), fmaf(x, v[3], sum.w)};
}
__device__ __forceinline__ void AddScaled(float4& sum, float x, const float4& v) {
  sum = {fmaf(x, v.x, sum.x), fmaf(x, v.y, sum.y), fmaf(x, v.z, sum.z), fmaf(x, v.w, sum.w)};
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
  if (threadIdx.x < 64) {
    if (item.first_column == 0 && i < kDim) {
      *reinterpret_cast<Vector<T, kVector>*>(item.k_rows + at + i) = Load<kVector>(item.k + i);
    }
  } else if (threadIdx.x < 128 && i < kSlice) {
    *reinterpret_cast<Vector<T, kVector>*>(item.v_rows + at + i) = Load<kVector>(item.v + i);
  }
}

// What a thread reads of the rows since the border, the new one included: of rows group + 16 i
// elements kDim / 16 lane .. of k and 4 lane .. + 3 of v.
template <typename T, int kDim>
struct Rows {
  Vector<T, kDim / kLanes> k[kRowsEach];
  Vector<T, 4> v[kRowsEach];

  __device__ Rows(const Item<T, kDim>& item, int group, int lane) {
    constexpr int kPart = kDim / kLanes;
    const auto fresh_k = Load<kPart>(item.k + lane * kPart);
    const auto fresh_v = Load<4>(item.v + lane * 4);
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      const int c = group + i * kGroups;
      k[i] = item.Row(item.k_rows, fresh_k, c, lane * kPart);
      v[i] = item.Row(item.v_rows, fresh_v, c, lane * 4);
    }
  }
};

// (q . k_c) exp(-slope (place - c)) for all c, to shared memory; 0 behind this row.
template <typename T, int kDim>
__device__ void Scores(Shared<T, kDim>& shared, const Item<T, kDim>& item,
                       const Rows<T, kDim>& rows, int group, int lane) {
  constexpr int kPart = kDim / kLanes;
  const auto q = Load<kPart>(item.q + lane * kPart);
  float dots[kRowsEach];
#pragma unroll
  for (int i = 0; i < kRowsEach; ++i) {
    dots[i] = 0;
#pragma unroll
    for (int j = 0; j < kPart; ++j) dots[i] = fmaf(q[j], rows.k[i][j], dots[i]);
  }
  const float dot = SumOverLanes(dots, lane);
  if (lane % 4 == 0) {
    const int c = group + lane / 4 * kGroups;
    shared.scores[c] = c <= item.place ? dot * DecayPower(item.slope, item.place - c) : 0.0f;
  }
}

// The block is complete: S = exp(-slope B) S + sum over c of exp(-slope (B - 1 - c)) k_c^T v_c.
template <typename T, int kDim>
__device__ void Fold(Shared<T, kDim>& shared, const Item<T, kDim>& item, int group, int lane) {
  constexpr int kPart = kDim / kLanes, kStateRows = kDim / kGroups;
  const float forget = BlockForget(item.slope);
  float4 s[kStateRows];
#pragma unroll
  for (int i = 0; i < kStateRows; ++i) {
    const float4 old =
        *reinterpret_cast<const float4*>(&shared.s[group * kStateRows + i][lane * 4]);
    s[i] = item.sequence.fresh ? float4{0, 0, 0, 0} : old;
    AddScaled(s[i], -forget, s[i]);
  }
  for (int c0 = 0; c0 < kB; c0 += kGroups) {
    const int row = c0 + group;
    const auto k = item.Row(item.k_rows, Load<kPart>(item.k + lane * kPart), row, lane * kPart);
    const auto v = item.Row(item.v_rows, Load<4>(item.v + lane * 4), row, lane * 4);
    const float decay = DecayPower(item.slope, kB - 1 - row);
    __syncthreads();
    *reinterpret_cast<Vector<T, kPart>*>(&shared.k_rows[group][lane * kPart]) = k;
    shared.v_rows[group][lane] = Scaled(decay, {v[0], v[1], v[2], v[3]});
    __syncthreads();
#pragma unroll 4
    for (int c = 0; c < kGroups; ++c) {
      const auto k = Load<kStateRows>(&shared.k_rows[c][group * kStateRows]);
#pragma unroll
      for (int i = 0; i < kStateRows; ++i) AddScaled(s[i], k[i], shared.v_rows[c][lane]);
    }
  }
#pragma unroll
  for (int i = 0; i < kStateRows; ++i) {
    *reinterpret_cast<float4*>(item.s + (group * kStateRows + i) * kDim + lane * 4) = s[i];
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 4 : 3)
    Decode(const __grid_constant__ LightningParams p, const __grid_constant__ CUtensorMap states) {
  constexpr int kSlices = kDim / kSlice, kStateRows = kDim / kGroups;
  __shared__ Shared<T, kDim> shared;
  const int thread = threadIdx.x, group = thread / kLanes, lane = thread % kLanes;
  const int unit = static_cast<int>(blockIdx.x) / kSlices;
  AllowNextKernel();
  if (thread == 0) {
    BarrierInit(&shared.full, 1);
    BarrierInitFence();
  }
  AwaitEarlierKernels();
  const Item<T, kDim> item(p, unit / p.heads, unit % p.heads,
                           static_cast<int>(blockIdx.x) % kSlices);
  if (item.sequence.total == 0) return;
  const bool fresh = item.sequence.fresh;
  if (thread == 0 && !fresh) {
    BarrierExpect(&shared.full, sizeof(shared.s));
    TmaLoad(shared.s, &states, &shared.full, item.first_column,
            (item.sequence.slot * p.heads + item.head) * kDim);
  }
  const Rows<T, kDim> rows(item, group, lane);
  if (thread < kDim) shared.q[thread] = Widen(item.q[thread]);
  KeepRow(item);
  Scores(shared, item, rows, group, lane);
  __syncthreads();

  float4 o = {0, 0, 0, 0};
  if (!fresh) {
    BarrierWait(&shared.full, 0);
#pragma unroll
    for (int i = 0; i < kStateRows; ++i) {
      const int row = group * kStateRows + i;
      AddScaled(o, shared.q[row], *reinterpret_cast<const float4*>(&shared.s[row][lane * 4]));
    }
    o = Scaled(DecayPower(item.slope, item.place + 1), o);
  }
#pragma unroll
  for (int i = 0; i < kRowsEach; ++i) {
    AddScaled(o, shared.scores[group + i * kGroups], rows.v[i]);
  }
  o.x += __shfl_xor_sync(0xffffffffu, o.x, kLanes);
  o.y += __shfl_xor_sync(0xffffffffu, o.y, kLanes);
  o.z += __shfl_xor_sync(0xffffffffu, o.z, kLanes);
  o.w += __shfl_xor_sync(0xffffffffu, o.w, kLanes);
  if (thread % 32 < kLanes) shared.sums[thread / 32][lane] = o;
  __syncthreads();
  if (thread < kSlice) {
    const auto* sums = reinterpret_cast<const float*>(shared.sums);
    float total = sums[thread];
#pragma unroll
    for (int i = 1; i < kThreads / 32; ++i) total += sums[i * kSlice + thread];
    static_cast<T*>(p.out)[(item.sequence.first_row + item.place) * p.out_row_stride +
                           item.head * p.out_head_stride + item.first_column + thread] =
        Narrow<T>(total);
  }
  if (item.place == kB - 1) Fold(shared, item, group, lane);
}

template <typename T, int kDim>
void Launch(Queue& queue, const LightningParams& p) {
  const unsigned ctas =
      static_cast<unsigned>(p.num_seqs) * static_cast<unsigned>(p.heads) * (kDim / kSlice);
  const CUtensorMap states = MakeTensorMap(p.s, {.type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                                 .dims = {kDim, p.num_slots * p.heads * kDim},
                                                 .strides = {kDim * sizeof(float)},
                                                 .box = {kSlice, kDim},
                                                 .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE});
  LaunchOverlapped(queue, Decode<T, kDim>, dim3(ctas), dim3(kThreads), 0, p, states);
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
