// Router, choice of experts, and the way of the rows there and back.
//
// Rows are numbered without atomics whose order could show: a block of 256 tokens marks in a bit
// set who chose which expert, and a token's place is the number of marks before its own.
#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/moe/moe_kernels.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlockTokens = 256;  // whose choices one block counts
constexpr int kMaxExperts = 256;
constexpr int kMostChoices = 8;  // of a token

int Blocks(int64_t items, int64_t a_block) {
  return static_cast<int>((items + a_block - 1) / a_block);
}

// ---- logits

struct LogitsParams {
  const void* x;
  int64_t x_stride;
  const float* w;
  float* logits;
  int64_t logits_stride;
  int64_t tokens;
  int width, num_experts;
};

// A block an expert and four tokens: all of the memory's channels are asked at once.
constexpr int kFewTokens = 4;

__global__ void __launch_bounds__(kThreads) LogitsFew(const __grid_constant__ LogitsParams p) {
  const int expert = blockIdx.x, warp = threadIdx.x / 32;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kFewTokens;
  const bf16* const x = static_cast<const bf16*>(p.x) + first * p.x_stride;
  const float* const w = p.w + static_cast<int64_t>(expert) * p.width;
  for (int i = threadIdx.x * 8; i < p.width; i += kThreads * 8) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(w + i));
  }
  AllowNextKernel();
  AwaitEarlierKernels();
  float sum[kFewTokens] = {};
#pragma unroll 3
  for (int i = threadIdx.x * 8; i < p.width; i += kThreads * 8) {
    float a[8];
    Load8(w + i, a);
#pragma unroll
    for (int t = 0; t < kFewTokens; ++t) {
      if (first + t >= p.tokens) continue;
      float b[8];
      Load8(x + t * p.x_stride + i, b);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[t] = fmaf(a[j], b[j], sum[t]);
    }
  }
  __shared__ float part[kFewTokens][kWarps];
#pragma unroll
  for (int t = 0; t < kFewTokens; ++t) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum[t] += __shfl_xor_sync(~0u, sum[t], d);
    if (threadIdx.x % 32 == 0) part[t][warp] = sum[t];
  }
  __syncthreads();
  const int64_t token = first + threadIdx.x;
  if (threadIdx.x < kFewTokens && token < p.tokens) {
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) total += part[threadIdx.x][i];
    p.logits[token * p.logits_stride + expert] = total;
  }
}

// 32 tokens by 32 experts a block; each warp takes an eighth of every 256 inputs.
constexpr int kTile = 32;
constexpr int kStep = 256;
constexpr int kPitch = kStep + 4;  // floats: eight rows at a time in different banks
constexpr int kLogitsShared = 2 * kTile * kPitch * static_cast<int>(sizeof(float));

template <typename T>
__global__ void __launch_bounds__(kThreads) LogitsMany(const __grid_constant__ LogitsParams p) {
  extern __shared__ float shared[];
  float* const xs = shared;
  float* const ws = shared + kTile * kPitch;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int token_group = lane / 4, expert_group = lane % 4;  // tokens + 8 i, experts + 4 j
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTile;
  const int first_expert = blockIdx.y * kTile;
  const T* const x = static_cast<const T*>(p.x);
  float sum[4][8] = {};
  for (int k = 0; k < p.width; k += kStep) {
    const int at = k + threadIdx.x;
    __syncthreads();
#pragma unroll 16
    for (int r = 0; r < kTile; ++r) {
      const bool inside = at < p.width;
      const int64_t token = first + r, expert = first_expert + r;
      xs[r * kPitch + threadIdx.x] =
          inside && token < p.tokens ? Load(x + token * p.x_stride + at) : 0.0f;
      ws[r * kPitch + threadIdx.x] =
          inside && expert < p.num_experts ? p.w[expert * p.width + at] : 0.0f;
    }
    __syncthreads();
#pragma unroll 2
    for (int i = 32 * warp; i < 32 * warp + 32; i += 4) {
      float4 a[4], b[8];
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        a[t] = *reinterpret_cast<const float4*>(xs + (token_group + 8 * t) * kPitch + i);
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        b[e] = *reinterpret_cast<const float4*>(ws + (expert_group + 4 * e) * kPitch + i);
      }
#pragma unroll
      for (int t = 0; t < 4; ++t) {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          float s = sum[t][e];
          s = fmaf(a[t].x, b[e].x, s);
          s = fmaf(a[t].y, b[e].y, s);
          s = fmaf(a[t].z, b[e].z, s);
          sum[t][e] = fmaf(a[t].w, b[e].w, s);
        }
      }
    }
  }
  // The warps' parts meet in the memory of the tiles: [warp][token][expert].
  __syncthreads();
#pragma unroll
  for (int t = 0; t < 4; ++t) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      shared[(warp * kTile + token_group + 8 * t) * (kTile + 1) + expert_group + 4 * e] = sum[t][e];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
    const int64_t token = first + i / kTile;
    const int expert = first_expert + i % kTile;
    if (token >= p.tokens || expert >= p.num_experts) continue;
    float total = 0.0f;
#pragma unroll
    for (int c = 0; c < kWarps; ++c) {
      total += shared[(c * kTile + i / kTile) * (kTile + 1) + i % kTile];
    }
    p.logits[token * p.logits_stride + expert] = total;
  }
}

// bf16 x and many tokens: tensor cores. A weight is the sum of three bf16 numbers to its last bit,
// so three products with x make one of float32. The sums of 16 inputs, which tensor cores do not
// round to nearest, are added up outside them: by warp, by block, and by cluster.
constexpr int kSplits = 4;        // blocks of a cluster take steps in turn
constexpr int kSplitTokens = 64;  // of a cluster
constexpr int kSplitStep = 128;   // inputs
constexpr int kSlices = 4;        // of a step, each for two warps
constexpr int kSplitStages = 3;
// Rows stand apart by what puts a warp's reads into different banks.
constexpr int kSplitPitchX = kSplitStep * 2 + 32;
constexpr int kSplitPitchW = kSplitStep * 4 + 64;
constexpr int kSplitBytesX = kSplitTokens * kSplitPitchX;
constexpr int kSplitStage = kSplitBytesX + kTile * kSplitPitchW;
constexpr int kSplitShared = kSplitStages * kSplitStage;
constexpr int kSplitSums = kSplitTokens * kTile;
static_assert((kSlices + 1) * kSplitSums * 4 <= kSplitShared);

// 16 bytes, or zeros.
__device__ __forceinline__ void CopyAsync(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void LoadSplit(const LogitsParams& p, int64_t first, int first_expert,
                                          int k, uint8_t* stage) {
  const bf16* const x = static_cast<const bf16*>(p.x);
#pragma unroll 1  // addresses would take the registers of sums
  for (int i = 0; i < kSplitTokens * kSplitStep / 8 / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = at / (kSplitStep / 8), piece = at % (kSplitStep / 8);
    const bool inside = first + row < p.tokens && k + piece * 8 < p.width;
    CopyAsync(stage + row * kSplitPitchX + piece * 16,
              inside ? x + (first + row) * p.x_stride + k + piece * 8 : x, inside);
  }
#pragma unroll 1  // addresses would take the registers of sums
  for (int i = 0; i < kTile * kSplitStep / 4 / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = at / (kSplitStep / 4), piece = at % (kSplitStep / 4);
    const bool inside = first_expert + row < p.num_experts && k + piece * 4 < p.width;
    const int64_t from = static_cast<int64_t>(first_expert + row) * p.width + k + piece * 4;
    CopyAsync(stage + kSplitBytesX + row * kSplitPitchW + piece * 16, inside ? p.w + from : p.w,
              inside);
  }
}

// a and b as three pairs of bf16 that add up to them, the smallest first.
__device__ __forceinline__ void SplitPair(float a, float b, uint32_t& low, uint32_t& middle,
                                          uint32_t& high) {
  const auto rest = [&](uint32_t pair) {
    a -= __uint_as_float(pair << 16);
    b -= __uint_as_float(pair & 0xffff0000u);
  };
  high = PackBf16(a, b);
  rest(high);
  middle = PackBf16(a, b);
  rest(middle);
  low = PackBf16(a, b);
}

__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sum += x w^T over this warp's 32 tokens and 32 inputs of a stage. A thread takes four
// neighbouring inputs, which the tensor cores number otherwise, for x and w alike.
__device__ __forceinline__ void MultiplySplit(const uint8_t* stage, float (&sum)[2][4][4]) {
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  const int first_token = warp % 2 * 32, first_input = warp / 2 * 32;
#pragma unroll
  for (int k = 0; k < 32; k += 16) {
    uint32_t w[4][2][3];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float4 v = *reinterpret_cast<const float4*>(
          stage + kSplitBytesX + (8 * j + g) * kSplitPitchW + (first_input + k) * 4 + c * 16);
      SplitPair(v.x, v.y, w[j][0][0], w[j][0][1], w[j][0][2]);
      SplitPair(v.z, v.w, w[j][1][0], w[j][1][1], w[j][1][2]);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint8_t* const x =
          stage + (first_token + 16 * m + g) * kSplitPitchX + (first_input + k) * 2 + c * 8;
      const uint2 upper = *reinterpret_cast<const uint2*>(x);
      const uint2 lower = *reinterpret_cast<const uint2*>(x + 8 * kSplitPitchX);
      const uint32_t a[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float part[4] = {};
#pragma unroll
        for (int i = 0; i < 3; ++i) Mma(part, a, w[j][0][i], w[j][1][i]);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][j][i] += part[i];
      }
    }
  }
}

__device__ __forceinline__ float LoadOfBlock(const float* p, int rank) {
  float v;
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [remote];\n}\n"
      : "=f"(v)
      : "r"(SharedAddress(p)), "r"(rank)
      : "memory");
  return v;
}

__global__ void __cluster_dims__(kSplits, 1, 1) __launch_bounds__(kThreads, 2)
    LogitsSplit(const __grid_constant__ LogitsParams p) {
  extern __shared__ __align__(16) uint8_t stages[];
  const int rank = static_cast<int>(blockIdx.x % kSplits);
  const int64_t first = static_cast<int64_t>(blockIdx.x / kSplits) * kSplitTokens;
  const int first_expert = blockIdx.y * kTile;
  const auto load = [&](int i) {  // the block's step i
    const int k = (i * kSplits + rank) * kSplitStep;
    if (k < p.width) {
      LoadSplit(p, first, first_expert, k, stages + i % kSplitStages * kSplitStage);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int i = 0; i < kSplitStages - 1; ++i) load(i);
  float sum[2][4][4] = {};
  for (int i = 0; (i * kSplits + rank) * kSplitStep < p.width; ++i) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kSplitStages - 2) : "memory");
    __syncthreads();
    load(i + kSplitStages - 1);
    MultiplySplit(stages + i % kSplitStages * kSplitStage, sum);
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  // The slices' sums meet in the memory of the stages: [slice][token][expert].
  float* const sums = reinterpret_cast<float*>(stages);
  float* const total = sums + kSlices * kSplitSums;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int token = warp % 2 * 32 + 16 * m + 8 * h + g;
        *reinterpret_cast<float2*>(sums + warp / 2 * kSplitSums + token * kTile + 8 * j + 2 * c) =
            make_float2(sum[m][j][2 * h], sum[m][j][2 * h + 1]);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSplitSums; i += kThreads) {
    float v = 0.0f;
#pragma unroll
    for (int s = 0; s < kSlices; ++s) v += sums[s * kSplitSums + i];
    total[i] = v;
  }
  ClusterSync();
  for (int i = threadIdx.x; i < kSplitSums / kSplits; i += kThreads) {
    const int at = rank * (kSplitSums / kSplits) + i;
    float v = 0.0f;
#pragma unroll
    for (int r = 0; r < kSplits; ++r) v += LoadOfBlock(total + at, r);
    const int64_t token = first + at / kTile;
    const int expert = first_expert + at % kTile;
    if (token < p.tokens && expert < p.num_experts) p.logits[token * p.logits_stride + expert] = v;
  }
  ClusterSync();  // the others have read
}

// ---- choice

struct ChoiceParams {
  const float* logits;
  int64_t logits_stride;
  Routing r;
};

// The largest open logit of a warp, the lower expert among equals; NaN counts as -infinity. A lane
// holds the logits of kSlots experts, 32 apart.
template <int kSlots>
__device__ __forceinline__ void Largest(const float (&v)[kSlots], uint32_t open, float& best,
                                        int& expert) {
  best = -INFINITY;
  expert = kMaxExperts;
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    const int e = threadIdx.x % 32 + 32 * j;
    if ((open >> j & 1) && (expert == kMaxExperts || v[j] > best)) {
      best = v[j];
      expert = e;
    }
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    const float other = __shfl_xor_sync(~0u, best, d);
    const int other_expert = __shfl_xor_sync(~0u, expert, d);
    if (other_expert < kMaxExperts &&
        (expert == kMaxExperts || other > best || (other == best && other_expert < expert))) {
      best = other;
      expert = other_expert;
    }
  }
}

// A token's experts and weights by a warp: lane i < k gets choice i, and its place by expert.
template <int kSlots>
__device__ __forceinline__ void Choose(const float* logits, int num_experts, int k, int& expert,
                                       float& weight, int& place) {
  const int lane = threadIdx.x % 32;
  float v[kSlots];
  uint32_t open = 0;
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    v[j] = -INFINITY;
    if (lane + 32 * j >= num_experts) continue;
    open |= 1u << j;
    const float x = logits[lane + 32 * j];
    if (x == x) v[j] = x;
  }
  expert = kMaxExperts;
  float mine = -INFINITY, top = 0.0f;
  for (int c = 0; c < k; ++c) {
    float best;
    int e;
    Largest<kSlots>(v, open, best, e);
    if (c == 0) top = best;
    if (lane == c) {
      mine = best;
      expert = e;
    }
    if (lane == e % 32) open &= ~(1u << (e / 32));
  }
  const float share = lane < k ? expf(mine - top) : 0.0f;
  float sum = 0.0f;
  place = 0;
  for (int c = 0; c < k; ++c) {
    sum += __shfl_sync(~0u, share, c);
    place += __shfl_sync(~0u, expert, c) < expert ? 1 : 0;
  }
  weight = share / sum;
}

// Lane i < k returns a choice of the token, all others -1.
template <int kSlots>
__device__ __forceinline__ int ChooseFor(const ChoiceParams& p, int64_t token, int& expert) {
  const int k = static_cast<int>(p.r.k);
  int place;
  float weight;
  Choose<kSlots>(p.logits + token * p.logits_stride, static_cast<int>(p.r.num_experts), k, expert,
                 weight, place);
  if (threadIdx.x % 32 >= k) return -1;
  p.r.expert[token * k + place] = expert;
  p.r.weight[token * k + place] = weight;
  return place;
}

// A warp a token.
template <int kSlots>
__global__ void __launch_bounds__(kThreads) ChooseForAll(const __grid_constant__ ChoiceParams p) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  int expert;
  if (token < p.r.tokens) ChooseFor<kSlots>(p, token, expert);
}

// A thread a token, of few experts.
constexpr int kFewExperts = 8;

__global__ void __launch_bounds__(kThreads) ChooseOfFew(const __grid_constant__ ChoiceParams p) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (token >= p.r.tokens) return;
  const int num_experts = static_cast<int>(p.r.num_experts), k = static_cast<int>(p.r.k);
  float v[kFewExperts];
#pragma unroll
  for (int e = 0; e < kFewExperts; ++e) {
    const float x = e < num_experts ? p.logits[token * p.logits_stride + e] : -INFINITY;
    v[e] = x == x ? x : -INFINITY;
  }
  uint32_t open = (1u << num_experts) - 1;
  int chosen[kFewExperts];
  float share[kFewExperts], top = 0.0f, sum = 0.0f;
#pragma unroll
  for (int c = 0; c < kFewExperts; ++c) {
    if (c >= k) break;
    float best = -INFINITY;
    chosen[c] = kMaxExperts;
#pragma unroll
    for (int e = 0; e < kFewExperts; ++e) {
      if ((open >> e & 1) && (chosen[c] == kMaxExperts || v[e] > best)) {
        best = v[e];
        chosen[c] = e;
      }
    }
    open &= ~(1u << chosen[c]);
    if (c == 0) top = best;
    share[c] = expf(best - top);
    sum += share[c];
  }
#pragma unroll
  for (int c = 0; c < kFewExperts; ++c) {
    if (c >= k) break;
    int place = 0;
#pragma unroll
    for (int other = 0; other < kFewExperts; ++other) {
      if (other < k && chosen[other] < chosen[c]) ++place;
    }
    p.r.expert[token * k + place] = chosen[c];
    p.r.weight[token * k + place] = share[c] / sum;
  }
}

// From the rows of each expert to the first of each, and the groups. One block.
__device__ __forceinline__ void NumberExperts(const Routing& r, const int* total, int* first) {
  __shared__ int64_t warp_sum[kWarps];
  const int num_experts = static_cast<int>(r.num_experts);
  // Rows (low) and groups (high) of the experts up to each thread's own.
  static_assert(kMaxExperts == kThreads);
  const int e = threadIdx.x, rows_of_e = e < num_experts ? total[e] : 0;
  const int count = static_cast<int>((rows_of_e + kMaxGroupRows - 1) / kMaxGroupRows);
  int64_t up_to = static_cast<int64_t>(count) << 32 | rows_of_e;
  const int64_t own = up_to;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int64_t other = __shfl_up_sync(~0u, up_to, d);
    if (e % 32 >= d) up_to += other;
  }
  if (e % 32 == 31) warp_sum[e / 32] = up_to;
  __syncthreads();
  for (int i = 0; i < e / 32; ++i) up_to += warp_sum[i];
  if (e == num_experts - 1) *r.num_groups = static_cast<int>(up_to >> 32);
  const int64_t before = up_to - own;
  first[e] = static_cast<int>(before & 0xffffffff);
  // Of one size, in whole units of 32 rows, up to the last.
  const int size = count > 1 ? ((rows_of_e + count - 1) / count + 31) / 32 * 32 : rows_of_e;
  RowGroup* group = r.groups + (before >> 32);
  for (int at = 0; at < rows_of_e; at += size) {
    *group++ = {e, min(size, rows_of_e - at), first[e] + at};
  }
  __syncthreads();
}

// From the rows of each block of tokens to the first row of each, and the groups. One block.
__device__ void NumberRows(const Routing& r) {
  __shared__ int part[kThreads], total[kMaxExperts], first[kMaxExperts];
  const int num_experts = static_cast<int>(r.num_experts);
  const int num_blocks = static_cast<int>((r.tokens + kBlockTokens - 1) / kBlockTokens);
  int columns = 1;
  while (columns < num_experts) columns *= 2;
  const int segments = kThreads / columns;
  const int expert = threadIdx.x % columns, segment = threadIdx.x / columns;
  const int length = (num_blocks + segments - 1) / segments;
  const int begin = min(segment * length, num_blocks), end = min(begin + length, num_blocks);
  int rows = 0;
  if (expert < num_experts) {
    for (int b = begin; b < end; ++b) rows += r.block_rows[b * num_experts + expert];
  }
  part[threadIdx.x] = rows;
  __syncthreads();
  if (segment == 0 && expert < num_experts) {
    int sum = 0;
    for (int i = 0; i < segments; ++i) {
      const int n = part[i * columns + expert];
      part[i * columns + expert] = sum;
      sum += n;
    }
    total[expert] = sum;
  }
  __syncthreads();
  NumberExperts(r, total, first);
  if (expert < num_experts) {
    int row = first[expert] + part[threadIdx.x];
    for (int b = begin; b < end; ++b) {
      int& at = r.block_rows[b * num_experts + expert];
      const int n = at;
      at = row;
      row += n;
    }
  }
}

// Choice i of all: what it has in `row` is its place among its block's rows of that expert.
__device__ __forceinline__ void PlaceRow(const Routing& r, int64_t i) {
  const int64_t token = i / r.k;
  const int row = r.block_rows[token / kBlockTokens * r.num_experts + r.expert[i]] + r.row[i];
  r.row[i] = row;
  r.token[row] = static_cast<int32_t>(token);
}

// Who of a block of tokens chose an expert: a bit a token.
using Choosers = uint32_t[kBlockTokens / 32];

__device__ __forceinline__ int CountBefore(const Choosers& who, int token) {
  int before = __popc(who[token / 32] & ((1u << (token % 32)) - 1));
  for (int j = 0; j < token / 32; ++j) before += __popc(who[j]);
  return before;
}
__device__ __forceinline__ int CountAll(const Choosers& who) {
  int rows = 0;
#pragma unroll
  for (int j = 0; j < kBlockTokens / 32; ++j) rows += __popc(who[j]);
  return rows;
}

// What one block of tokens chose.
__global__ void __launch_bounds__(kThreads) CountBlockRows(const __grid_constant__ Routing r) {
  __shared__ Choosers chose[kMaxExperts];
  const int num_experts = static_cast<int>(r.num_experts), k = static_cast<int>(r.k);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens;
  const int tokens = static_cast<int>(min(r.tokens - first, static_cast<int64_t>(kBlockTokens)));
  for (int i = threadIdx.x; i < num_experts * (kBlockTokens / 32); i += kThreads) {
    chose[i / (kBlockTokens / 32)][i % (kBlockTokens / 32)] = 0;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < tokens * k; i += kThreads) {
    const int t = i / k;
    atomicOr(&chose[r.expert[first * k + i]][t / 32], 1u << (t % 32));
  }
  __syncthreads();
  for (int i = threadIdx.x; i < tokens * k; i += kThreads) {
    r.row[first * k + i] = CountBefore(chose[r.expert[first * k + i]], i / k);
  }
  if (threadIdx.x < num_experts) {
    r.block_rows[static_cast<int64_t>(blockIdx.x) * num_experts + threadIdx.x] =
        CountAll(chose[threadIdx.x]);
  }
}

// All at once where one block has all tokens, without a trip to memory between the steps: while
// this runs, nothing knows which weights to ask for.
template <int kSlots>
__global__ void __launch_bounds__(kThreads) RouteFew(const __grid_constant__ ChoiceParams p) {
  __shared__ Choosers chose[kMaxExperts];
  __shared__ int chosen[kBlockTokens * kMostChoices], total[kMaxExperts], first[kMaxExperts];
  AllowNextKernel();
  for (int j = 0; j < kBlockTokens / 32; ++j) chose[threadIdx.x][j] = 0;
  __syncthreads();
  AwaitEarlierKernels();
  const Routing& r = p.r;
  const int tokens = static_cast<int>(r.tokens), k = static_cast<int>(r.k);
  for (int t = threadIdx.x / 32; t < tokens; t += kWarps) {
    int expert;
    const int place = ChooseFor<kSlots>(p, t, expert);
    if (place >= 0) {
      chosen[t * k + place] = expert;
      atomicOr(&chose[expert][t / 32], 1u << (t % 32));
    }
  }
  __syncthreads();
  total[threadIdx.x] = CountAll(chose[threadIdx.x]);
  NumberExperts(r, total, first);
  for (int i = threadIdx.x; i < tokens * k; i += kThreads) {
    const int row = first[chosen[i]] + CountBefore(chose[chosen[i]], i / k);
    r.row[i] = row;
    r.token[row] = i / k;
  }
}

__global__ void __launch_bounds__(kThreads) NumberAllRows(const __grid_constant__ Routing r) {
  NumberRows(r);
}

__global__ void __launch_bounds__(kThreads) PlaceRows(const __grid_constant__ Routing r) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < r.tokens * r.k) PlaceRow(r, i);
}

// ---- there and back

// A block a token: read once, written k times.
__global__ void __launch_bounds__(kThreads) Spread(const bf16* x, int64_t x_stride, int width,
                                                   const __grid_constant__ Routing r, bf16* out) {
  const int64_t token = blockIdx.x;
  for (int c = threadIdx.x * 8; c < width; c += kThreads * 8) {
    const uint4 v = *reinterpret_cast<const uint4*>(x + token * x_stride + c);
    for (int i = 0; i < r.k; ++i) {
      const int64_t row = r.row[token * r.k + i];
      *reinterpret_cast<uint4*>(out + row * width + c) = v;
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    SpreadInPairOrder(const bf16* x, int64_t x_stride, int width, const __grid_constant__ Routing r,
                      bf16* out) {
  const int64_t token = blockIdx.x;
  for (int c = threadIdx.x * 16; c < width; c += kThreads * 16) {
    const uint4* const from = reinterpret_cast<const uint4*>(x + token * x_stride + c);
    const uint4 a = from[0], b = from[1];
    for (int i = 0; i < r.k; ++i) {
      const int64_t row = r.row[token * r.k + i];
      uint4* const to = reinterpret_cast<uint4*>(out + row * width + c);
      to[0] = make_uint4(a.x, a.z, b.x, b.z);
      to[1] = make_uint4(a.y, a.w, b.y, b.w);
    }
  }
}

// gridDim.y blocks a token, kWide columns a thread.
template <int kWide, typename In, typename Out>
__global__ void __launch_bounds__(kThreads)
    CombineColumns(const In* y, int width, const __grid_constant__ Routing r, Out* out,
                   int64_t out_stride) {
  AllowNextKernel();
  AwaitEarlierKernels();
  const int64_t token = blockIdx.x;
  const int first = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * kWide;
  for (int c = first; c < width; c += static_cast<int>(gridDim.y) * kThreads * kWide) {
    float sum[kWide] = {};
#pragma unroll 2
    for (int i = 0; i < r.k; ++i) {
      const float weight = r.weight[token * r.k + i];
      const In* const row = y + static_cast<int64_t>(r.row[token * r.k + i]) * width + c;
      float v[kWide];
      Get(row, v);
#pragma unroll
      for (int j = 0; j < kWide; ++j) sum[j] = fmaf(weight, v[j], sum[j]);
    }
    Put(out + token * out_stride + c, sum);
  }
}

template <typename In, typename Out>
void LaunchCombine(Queue& queue, const Tensor& y, const Routing& r, const Tensor& out) {
  const auto in = y.As<const In, 2>();
  const auto to = out.As<Out, 2>();
  const int width = static_cast<int>(out.dim(1));
  const bool wide = width % 8 == 0 && HasAlignedRows(out);
  const auto combine = wide ? CombineColumns<8, In, Out> : CombineColumns<1, In, Out>;
  // Few tokens: each thread has its numbers on their way at once.
  const int pieces = r.num_rows() <= kFewMoeRows ? Blocks(width, kThreads * (wide ? 8 : 1)) : 1;
  const dim3 blocks(static_cast<unsigned>(r.tokens), static_cast<unsigned>(pieces));
  LaunchOverlapped(queue, combine, blocks, kThreads, 0, in.data, width, r, to.data, to.stride[0]);
}

template <typename T>
void LaunchLogits(Queue& queue, const LogitsParams& p) {
  static const bool enlarged = [] {
    CheckCuda(cudaFuncSetAttribute(LogitsMany<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   kLogitsShared));
    return true;
  }();
  static_cast<void>(enlarged);
  const dim3 grid(Blocks(p.tokens, kTile), Blocks(p.num_experts, kTile));
  LogitsMany<T><<<grid, kThreads, kLogitsShared, queue.stream()>>>(p);
  CheckLaunch();
}

void LaunchSplit(Queue& queue, const LogitsParams& p) {
  static const bool enlarged = [] {
    CheckCuda(cudaFuncSetAttribute(LogitsSplit, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   kSplitShared));
    return true;
  }();
  static_cast<void>(enlarged);
  const dim3 grid(Blocks(p.tokens, kSplitTokens) * kSplits, Blocks(p.num_experts, kTile));
  LogitsSplit<<<grid, kThreads, kSplitShared, queue.stream()>>>(p);
  CheckLaunch();
}

}  // namespace

Routing MakeRouting(Scratch& scratch, int64_t tokens, int64_t k, int64_t num_experts) {
  Routing r{.tokens = tokens, .k = k, .num_experts = num_experts};
  r.expert = scratch.Get<int32_t>(r.num_rows());
  r.weight = scratch.Get<float>(r.num_rows());
  r.row = scratch.Get<int32_t>(r.num_rows());
  r.token = scratch.Get<int32_t>(r.num_rows());
  r.groups = scratch.Get<RowGroup>(r.most_groups());
  r.num_groups = scratch.Get<int32_t>(1);
  r.block_rows = scratch.Get<int32_t>(Blocks(tokens, kBlockTokens) * num_experts);
  return r;
}

void RouterLogits(Queue& queue, const Tensor& x, const Weight& router, const Tensor& logits,
                  bool few) {
  const LogitsParams p{.x = x.data,
                       .x_stride = x.stride[0],
                       .w = static_cast<const float*>(router.data()),
                       .logits = logits.As<float, 2>().data,
                       .logits_stride = logits.stride[0],
                       .tokens = x.dim(0),
                       .width = static_cast<int>(x.dim(1)),
                       .num_experts = static_cast<int>(router.n())};
  if (few) {
    const dim3 grid(static_cast<unsigned>(p.num_experts), Blocks(p.tokens, kFewTokens));
    LaunchOverlapped(queue, LogitsFew, grid, kThreads, 0, p);
  } else if (x.dtype == DType::kBF16 && p.width % 8 == 0 && HasAlignedRows(x)) {
    LaunchSplit(queue, p);
  } else {
    WithElement(x, [&]<typename T>() { LaunchLogits<T>(queue, p); });
  }
}

void ChooseExperts(Queue& queue, const Tensor& logits, const Routing& r) {
  const ChoiceParams p{logits.As<const float, 2>().data, logits.stride[0], r};
  if (r.num_experts <= kFewExperts) {
    ChooseOfFew<<<Blocks(r.tokens, kThreads), kThreads, 0, queue.stream()>>>(p);
  } else {
    const auto choose = r.num_experts <= 32 ? ChooseForAll<1> : ChooseForAll<kMaxExperts / 32>;
    choose<<<Blocks(r.tokens, kWarps), kThreads, 0, queue.stream()>>>(p);
  }
  CheckLaunch();
}

void RouteRows(Queue& queue, const Tensor& logits, const Routing& r) {
  const ChoiceParams p{logits.As<const float, 2>().data, logits.stride[0], r};
  const bool one_slot = r.num_experts <= 32;
  const int blocks = Blocks(r.tokens, kBlockTokens);
  if (blocks == 1) {
    LaunchOverlapped(queue, one_slot ? RouteFew<1> : RouteFew<kMaxExperts / 32>, 1, kThreads, 0, p);
    return;
  }
  ChooseExperts(queue, logits, r);
  CountBlockRows<<<blocks, kThreads, 0, queue.stream()>>>(r);
  CheckLaunch();
  NumberAllRows<<<1, kThreads, 0, queue.stream()>>>(r);
  CheckLaunch();
  PlaceRows<<<Blocks(r.num_rows(), kThreads), kThreads, 0, queue.stream()>>>(r);
  CheckLaunch();
}

void SpreadRows(Queue& queue, const Tensor& x, const Routing& r, bf16* out, bool pair_order) {
  const auto in = x.As<const bf16, 2>();
  const int width = static_cast<int>(x.dim(1));
  const auto blocks = static_cast<unsigned>(r.tokens);
  if (pair_order) {
    SpreadInPairOrder<<<blocks, kThreads, 0, queue.stream()>>>(in.data, in.stride[0], width, r,
                                                               out);
  } else {
    Spread<<<blocks, kThreads, 0, queue.stream()>>>(in.data, in.stride[0], width, r, out);
  }
  CheckLaunch();
}

void CombineRows(Queue& queue, const Tensor& y, const Routing& r, const Tensor& out) {
  if (y.dtype == DType::kBF16) return LaunchCombine<bf16, bf16>(queue, y, r, out);
  if (out.dtype == DType::kBF16) return LaunchCombine<float, bf16>(queue, y, r, out);
  LaunchCombine<float, float>(queue, y, r, out);
}

}  // namespace mm01::cuda
