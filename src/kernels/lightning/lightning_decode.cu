// Lightning of one token a sequence: reads S and the rows since the border, writes the row.
//
// A CTA does 64 columns of V of a (sequence, head), or 32 where that would leave multiprocessors
// with less than two CTAs; every sum has the same order in both. One TMA copy brings its part of S
// to shared memory, the rows come to registers, and all of it is in flight before the first is
// used. The slices of a head work out the same scores; their k rows come from memory but once.
//
// CTAs that start while the kernel ahead still runs look up what they will read. Of settled slots
// S and rows come at once, so that the memory works on while one kernel ends and the next begins;
// of others they are asked for in L2 and read after the wait, so that what the kernel ahead writes
// there meanwhile is seen.
#include "base/check.h"
#include "device/check_cuda.cuh"
#include "device/tensor_map.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/lightning/lightning_kernels.cuh"

namespace mm01::cuda {
namespace {

constexpr int kB = kLightningBlock;
constexpr int kKeyLanes = 16;            // threads that share a row of k
constexpr int kGroups = 16;              // rows of v, or of S, side by side
constexpr int kRowsEach = kB / kGroups;  // of v, in a thread

// A CTA with kColumns columns of V: a thread has four of them.
template <typename Element, int kHeadDim, int kColumns>
struct Shape {
  using T = Element;
  static constexpr int kDim = kHeadDim, kSlice = kColumns, kSlices = kDim / kSlice;
  static constexpr int kLanes = kSlice / 4;  // threads that share a row of v, or of S
  static constexpr int kThreads = kGroups * kLanes;
  static constexpr int kStateRows = kDim / kGroups;        // of S, in a thread
  static constexpr int kKeyGroups = kThreads / kKeyLanes;  // rows of k side by side
  static constexpr int kKeyRows = kB / kKeyGroups;         // of k, in a thread
  static constexpr int kKeyPart = kDim / kKeyLanes;        // elements of each
  static constexpr int kResident = kSlice == 64 ? (sizeof(T) == 2 ? 4 : 3)  // CTAs
                                                : (sizeof(T) == 2 ? 6 : 4);
};

template <typename S>
struct alignas(128) Shared {
  float s[S::kDim][S::kSlice];
  typename S::T k_rows[kGroups][S::kDim];  // for Fold
  float4 v_rows[kGroups][S::kLanes];
  float q[S::kDim], scores[kB];
  float4 sums[kGroups / 2][S::kLanes];
  uint64_t full;
};

// The sum over 16 lanes of x[i], in lanes i * 16 / kCount and on: a butterfly that first halves
// what is still carried. The order of the sum does not depend on kCount.
template <int kCount>
__device__ __forceinline__ float SumOverLanes(float (&x)[kCount], int lane) {
#pragma unroll
  for (int bit = kKeyLanes / 2, count = kCount / 2; count >= 1; bit /= 2, count /= 2) {
    const bool upper = lane & bit;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float mine = upper ? x[i + count] : x[i];
      const float other = upper ? x[i] : x[i + count];
      x[i] = mine + __shfl_xor_sync(0xffffffffu, other, bit);
    }
  }
#pragma unroll
  for (int bit = kKeyLanes / kCount / 2; bit >= 1; bit /= 2) {
    x[0] += __shfl_xor_sync(0xffffffffu, x[0], bit);
  }
  return x[0];
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
template <typename S>
struct Item {
  using T = typename S::T;
  Sequence sequence;
  int head, first_column, place;
  float slope;
  const T *q, *k, *v;
  T *k_rows, *v_rows;

  // This CTA's.
  __device__ explicit Item(const LightningParams& p)
      : sequence(SequenceAt(p, static_cast<int>(blockIdx.x) / S::kSlices / p.heads)),
        head(static_cast<int>(blockIdx.x) / S::kSlices % p.heads),
        first_column(static_cast<int>(blockIdx.x) % S::kSlices * S::kSlice),
        place(sequence.begin),
        slope(p.slope[head]) {
    const int64_t at = (sequence.first_row + place) * p.row_stride + head * p.head_stride;
    q = static_cast<const T*>(p.q) + at;
    k = static_cast<const T*>(p.k) + at;
    v = static_cast<const T*>(p.v) + at + first_column;
    const int64_t kept = (static_cast<int64_t>(sequence.slot) * p.heads + head) * kB * S::kDim;
    k_rows = static_cast<T*>(p.k_rows) + kept;
    v_rows = static_cast<T*>(p.v_rows) + kept + first_column;
  }

  // Row i of the slot's S.
  __device__ float* State(const LightningParams& p, int i) const {
    const int64_t kept = static_cast<int64_t>(sequence.slot) * p.heads + head;
    return p.s + (kept * S::kDim + i) * S::kDim;
  }

  // The slices of a head divide what lies together: each asks for as many rows of S as it has
  // columns, the first for the rows of k, the last for those of v.
  __device__ void Prefetch(const LightningParams& p) const {
    constexpr int kStateBytes = S::kSlice * S::kDim * sizeof(float);
    if (!sequence.fresh) PrefetchToL2(State(p, first_column), kStateBytes);
    const int bytes = place * S::kDim * static_cast<int>(sizeof(T));
    if (bytes == 0) return;
    if (first_column == 0) PrefetchToL2(k_rows, bytes);
    if (first_column == S::kDim - S::kSlice) PrefetchToL2(v_rows - first_column, bytes);
  }

  // kCount elements of row c of the block, from `at` on, of the slot; 0 from this row on.
  template <int kCount>
  __device__ Vector<T, kCount> Row(const T* rows, int c, int at) const {
    Vector<T, kCount> x = {};
    if (c < place) x = Load<kCount>(rows + c * S::kDim + at);
    return x;
  }
};

template <typename S>
__device__ void KeepRow(const Item<S>& item) {
  constexpr int kVector = 16 / sizeof(typename S::T);
  using V = Vector<typename S::T, kVector>;
  const int at = item.place * S::kDim, i = static_cast<int>(threadIdx.x) % 64 * kVector;
  if (threadIdx.x < 64) {
    if (item.first_column == 0 && i < S::kDim) {
      *reinterpret_cast<V*>(item.k_rows + at + i) = Load<kVector>(item.k + i);
    }
  } else if (threadIdx.x < 128 && i < S::kSlice) {
    *reinterpret_cast<V*>(item.v_rows + at + i) = Load<kVector>(item.v + i);
  }
}

// What a thread reads of the rows since the border.
template <typename S>
struct Rows {
  Vector<typename S::T, S::kKeyPart> k[S::kKeyRows];  // rows thread / 16 + kKeyGroups i
  Vector<typename S::T, 4> v[kRowsEach];              // rows group + 16 i
  int key_group, key_at, group, value_at;

  __device__ Rows(int group_of_rows, int lane)
      : key_group(static_cast<int>(threadIdx.x) / kKeyLanes),
        key_at(static_cast<int>(threadIdx.x) % kKeyLanes * S::kKeyPart),
        group(group_of_rows),
        value_at(lane * 4) {}

  // Those that the slot has.
  __device__ void Fetch(const Item<S>& item) {
#pragma unroll
    for (int i = 0; i < S::kKeyRows; ++i) {
      k[i] = item.template Row<S::kKeyPart>(item.k_rows, key_group + i * S::kKeyGroups, key_at);
    }
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      v[i] = item.template Row<4>(item.v_rows, group + i * kGroups, value_at);
    }
  }

  // The new one.
  __device__ void Add(const Item<S>& item) {
    const auto new_k = Load<S::kKeyPart>(item.k + key_at);
    const auto new_v = Load<4>(item.v + value_at);
#pragma unroll
    for (int i = 0; i < S::kKeyRows; ++i) {
      if (key_group + i * S::kKeyGroups == item.place) k[i] = new_k;
    }
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      if (group + i * kGroups == item.place) v[i] = new_v;
    }
  }
};

// (q . k_c) exp(-slope (place - c)) for all c, to shared memory; 0 behind this row.
template <typename S>
__device__ void Scores(Shared<S>& shared, const Item<S>& item, const Rows<S>& rows) {
  constexpr int kLanesEach = kKeyLanes / S::kKeyRows;  // that end up with the same row
  const int lane = static_cast<int>(threadIdx.x) % kKeyLanes;
  const auto q = Load<S::kKeyPart>(item.q + lane * S::kKeyPart);
  float dots[S::kKeyRows];
#pragma unroll
  for (int i = 0; i < S::kKeyRows; ++i) {
    dots[i] = 0;
#pragma unroll
    for (int j = 0; j < S::kKeyPart; ++j) dots[i] = fmaf(q[j], rows.k[i][j], dots[i]);
  }
  const float dot = SumOverLanes(dots, lane);
  if (lane % kLanesEach == 0) {
    const int c = static_cast<int>(threadIdx.x) / kKeyLanes + lane / kLanesEach * S::kKeyGroups;
    shared.scores[c] = c <= item.place ? dot * DecayPower(item.slope, item.place - c) : 0.0f;
  }
}

// The block is complete: S = exp(-slope B) S + sum over c of exp(-slope (B - 1 - c)) k_c^T v_c.
template <typename S>
__device__ void Fold(Shared<S>& shared, const LightningParams& p, int group, int lane) {
  const Item<S> item(p);  // anew: kept, it would cost registers all along
  using T = typename S::T;
  constexpr int kLoads = kGroups / S::kKeyGroups;
  const int key_group = static_cast<int>(threadIdx.x) / kKeyLanes;
  const int at = static_cast<int>(threadIdx.x) % kKeyLanes * S::kKeyPart;
  const float forget = BlockForget(item.slope);
  float4 s[S::kStateRows];
#pragma unroll
  for (int i = 0; i < S::kStateRows; ++i) {
    const float4 old =
        *reinterpret_cast<const float4*>(&shared.s[group * S::kStateRows + i][lane * 4]);
    s[i] = item.sequence.fresh ? float4{0, 0, 0, 0} : old;
    AddScaled(s[i], -forget, s[i]);
  }
#pragma unroll 1
  for (int c0 = 0; c0 < kB; c0 += kGroups) {
    Vector<T, S::kKeyPart> k[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int c = c0 + key_group + i * S::kKeyGroups;
      k[i] = Load<S::kKeyPart>((c == kB - 1 ? item.k : item.k_rows + c * S::kDim) + at);
    }
    const int c = c0 + group;
    const auto v = Load<4>((c == kB - 1 ? item.v : item.v_rows + c * S::kDim) + lane * 4);
    const float decay = DecayPower(item.slope, kB - 1 - c);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      auto& row = shared.k_rows[key_group + i * S::kKeyGroups];
      *reinterpret_cast<Vector<T, S::kKeyPart>*>(&row[at]) = k[i];
    }
    shared.v_rows[group][lane] = Scaled(decay, {v[0], v[1], v[2], v[3]});
    __syncthreads();
#pragma unroll 4
    for (int row = 0; row < kGroups; ++row) {
      const auto k_row = Load<S::kStateRows>(&shared.k_rows[row][group * S::kStateRows]);
#pragma unroll
      for (int i = 0; i < S::kStateRows; ++i) AddScaled(s[i], k_row[i], shared.v_rows[row][lane]);
    }
  }
  float* to = item.State(p, group * S::kStateRows) + item.first_column + lane * 4;
#pragma unroll
  for (int i = 0; i < S::kStateRows; ++i) *reinterpret_cast<float4*>(to + i * S::kDim) = s[i];
}

// The first `num_early` CTAs may start while the kernel ahead runs.
template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kResident)
    Decode(const __grid_constant__ LightningParams p, const __grid_constant__ CUtensorMap states,
           unsigned num_early) {
  __shared__ Shared<S> shared;
  const int thread = threadIdx.x, group = thread / S::kLanes, lane = thread % S::kLanes;
  const Item<S> item(p);
  const bool fresh = item.sequence.fresh, empty = item.sequence.total == 0;
  Rows<S> rows(group, lane);
  const auto fetch = [&] {
    if (thread == 0 && !fresh) {
      BarrierExpect(&shared.full, sizeof(shared.s));
      TmaLoad(shared.s, &states, &shared.full, item.first_column,
              (item.sequence.slot * p.heads + item.head) * S::kDim);
    }
    rows.Fetch(item);
  };
  if (thread == 0) {
    TmaPrefetch(&states);
    if (!p.settled && blockIdx.x < num_early && !empty) item.Prefetch(p);
    BarrierInit(&shared.full, 1);
    BarrierInitFence();
  }
  if (p.settled && !empty) fetch();
  AwaitEarlierKernels();
  AllowNextKernel();
  if (empty) return;
  if (!p.settled) fetch();
  rows.Add(item);
  if (thread < S::kDim) shared.q[thread] = Widen(item.q[thread]);
  KeepRow(item);
  Scores(shared, item, rows);
  __syncthreads();

  float4 o = {0, 0, 0, 0};
  if (!fresh) {
    BarrierWait(&shared.full, 0);
#pragma unroll
    for (int i = 0; i < S::kStateRows; ++i) {
      const int row = group * S::kStateRows + i;
      AddScaled(o, shared.q[row], *reinterpret_cast<const float4*>(&shared.s[row][lane * 4]));
    }
    o = Scaled(DecayPower(item.slope, item.place + 1), o);
  }
#pragma unroll
  for (int i = 0; i < kRowsEach; ++i) {
    AddScaled(o, shared.scores[group + i * kGroups], rows.v[i]);
  }
  o.x += __shfl_xor_sync(0xffffffffu, o.x, S::kLanes);
  o.y += __shfl_xor_sync(0xffffffffu, o.y, S::kLanes);
  o.z += __shfl_xor_sync(0xffffffffu, o.z, S::kLanes);
  o.w += __shfl_xor_sync(0xffffffffu, o.w, S::kLanes);
  if (group % 2 == 0) shared.sums[group / 2][lane] = o;
  __syncthreads();
  if (thread < S::kSlice) {
    const auto* sums = reinterpret_cast<const float*>(shared.sums);
    float total = sums[thread];
#pragma unroll
    for (int i = 1; i < kGroups / 2; ++i) total += sums[i * S::kSlice + thread];
    using T = typename S::T;
    static_cast<T*>(p.out)[(item.sequence.first_row + item.place) * p.out_row_stride +
                           item.head * p.out_head_stride + item.first_column + thread] =
        Narrow<T>(total);
  }
  if (item.place == kB - 1) Fold(shared, p, group, lane);
}

template <typename S>
void Launch(Queue& queue, const LightningParams& p) {
  const auto ctas = static_cast<unsigned>(p.num_seqs) * static_cast<unsigned>(p.heads) * S::kSlices;
  const CUtensorMap states = MakeTensorMap(p.s, {.type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                                 .dims = {S::kDim, p.num_slots * p.heads * S::kDim},
                                                 .strides = {S::kDim * sizeof(float)},
                                                 .box = {S::kSlice, S::kDim},
                                                 .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE});
  LaunchOverlapped(queue, Decode<S>, dim3(ctas), dim3(S::kThreads), 0, p, states,
                   static_cast<unsigned>(S::kResident * Multiprocessors()));
}

template <typename T, int kDim>
void LaunchSlices(Queue& queue, const LightningParams& p) {
  const int64_t ctas = static_cast<int64_t>(p.num_seqs) * p.heads * (kDim / 64);
  if (ctas < 2 * Multiprocessors()) {
    Launch<Shape<T, kDim, 32>>(queue, p);
  } else {
    Launch<Shape<T, kDim, 64>>(queue, p);
  }
}

}  // namespace

void LaunchDecode(Queue& queue, DType dtype, const LightningParams& p) {
  Check(p.dim == 64 || p.dim == 128, "LaunchDecode: head dim 64 or 128");
  if (dtype == DType::kBF16) {
    p.dim == 128 ? LaunchSlices<__nv_bfloat16, 128>(queue, p)
                 : LaunchSlices<__nv_bfloat16, 64>(queue, p);
  } else {
    p.dim == 128 ? LaunchSlices<float, 128>(queue, p) : LaunchSlices<float, 64>(queue, p);
  }
}

}  // namespace mm01::cuda
