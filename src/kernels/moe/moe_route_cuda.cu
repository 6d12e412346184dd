// Router, choice of experts, and the way of the rows there and back.
//
// Rows are numbered without atomics whose order could show: a block of 256 tokens marks in a bit
// set who chose which expert, and a token's place is the number of marks before its own.
#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/moe/moe_kernels.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlockTokens = 256;  // whose choices one block counts
constexpr int kMaxExperts = 256;

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

// ---- choice

struct ChoiceParams {
  const float* logits;
  int64_t logits_stride;
  Routing r;
};

// The largest open logit of a warp, the lower expert among equals; NaN counts as -infinity.
__device__ __forceinline__ void Largest(const float (&v)[kMaxExperts / 32], uint32_t open,
                                        float& best, int& expert) {
  best = -INFINITY;
  expert = kMaxExperts;
#pragma unroll
  for (int j = 0; j < kMaxExperts / 32; ++j) {
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
__device__ __forceinline__ void Choose(const float* logits, int num_experts, int k, int& expert,
                                       float& weight, int& place) {
  const int lane = threadIdx.x % 32;
  float v[kMaxExperts / 32];
  uint32_t open = 0;
#pragma unroll
  for (int j = 0; j < kMaxExperts / 32; ++j) {
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
    Largest(v, open, best, e);
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
  if (threadIdx.x == 0) {
    int row = 0, groups = 0;
    for (int e = 0; e < num_experts; ++e) {
      first[e] = row;
      const int count = static_cast<int>((total[e] + kMaxGroupRows - 1) / kMaxGroupRows);
      // Of one size, in whole units of 32 rows, up to the last.
      const int size = count > 0 ? ((total[e] + count - 1) / count + 31) / 32 * 32 : 0;
      for (int at = 0; at < total[e]; at += size) {
        r.groups[groups++] = {e, min(size, total[e] - at), row + at};
      }
      row += total[e];
    }
    *r.num_groups = groups;
  }
  __syncthreads();
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

// One block of tokens; if there are no others, the rest as well.
__global__ void __launch_bounds__(kThreads) ChooseExperts(const __grid_constant__ ChoiceParams p) {
  const Routing& r = p.r;
  __shared__ uint32_t chose[kMaxExperts][kBlockTokens / 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int num_experts = static_cast<int>(r.num_experts), k = static_cast<int>(r.k);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens;
  const int tokens = static_cast<int>(min(r.tokens - first, static_cast<int64_t>(kBlockTokens)));
  for (int i = threadIdx.x; i < num_experts * (kBlockTokens / 32); i += kThreads) {
    chose[i / (kBlockTokens / 32)][i % (kBlockTokens / 32)] = 0;
  }
  __syncthreads();
  for (int t = warp; t < tokens; t += kWarps) {
    int expert, place;
    float weight;
    Choose(p.logits + (first + t) * p.logits_stride, num_experts, k, expert, weight, place);
    if (lane < k) {
      r.expert[(first + t) * k + place] = expert;
      r.weight[(first + t) * k + place] = weight;
      atomicOr(&chose[expert][t / 32], 1u << (t % 32));
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < tokens * k; i += kThreads) {
    const int t = i / k;
    const uint32_t* const who = chose[r.expert[first * k + i]];
    int before = __popc(who[t / 32] & ((1u << (t % 32)) - 1));
    for (int j = 0; j < t / 32; ++j) before += __popc(who[j]);
    r.row[first * k + i] = before;
  }
  if (threadIdx.x < num_experts) {
    int rows = 0;
#pragma unroll
    for (int j = 0; j < kBlockTokens / 32; ++j) rows += __popc(chose[threadIdx.x][j]);
    r.block_rows[static_cast<int64_t>(blockIdx.x) * num_experts + threadIdx.x] = rows;
  }
  if (gridDim.x > 1) return;
  __syncthreads();
  NumberRows(r);
  __syncthreads();
  for (int i = threadIdx.x; i < tokens * k; i += kThreads) PlaceRow(r, i);
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

// A block a token and some columns, kWide of them a thread.
template <int kWide, typename In, typename Out>
__global__ void __launch_bounds__(kThreads)
    CombineColumns(const In* y, int width, const __grid_constant__ Routing r, Out* out,
                   int64_t out_stride) {
  const int64_t token = blockIdx.x;
  for (int c = threadIdx.x * kWide; c < width; c += kThreads * kWide) {
    float sum[kWide] = {};
    for (int i = 0; i < r.k; ++i) {
      const float weight = r.weight[token * r.k + i];
      const In* const row = y + static_cast<int64_t>(r.row[token * r.k + i]) * width + c;
      float v[kWide];
      if constexpr (kWide == 8) {
        Load8(row, v);
      } else {
        v[0] = Load(row);
      }
#pragma unroll
      for (int j = 0; j < kWide; ++j) sum[j] = fmaf(weight, v[j], sum[j]);
    }
    if constexpr (kWide == 8) {
      Store8(out + token * out_stride + c, sum);
    } else {
      Store(out + token * out_stride + c, sum[0]);
    }
  }
}

template <typename In, typename Out>
void LaunchCombine(Queue& queue, const Tensor& y, const Routing& r, const Tensor& out) {
  const auto in = y.As<const In, 2>();
  const auto to = out.As<Out, 2>();
  const int width = static_cast<int>(out.dim(1));
  const auto blocks = static_cast<unsigned>(r.tokens);
  if (width % 8 == 0 && HasAlignedRows(out)) {
    CombineColumns<8>
        <<<blocks, kThreads, 0, queue.stream()>>>(in.data, width, r, to.data, to.stride[0]);
  } else {
    CombineColumns<1>
        <<<blocks, kThreads, 0, queue.stream()>>>(in.data, width, r, to.data, to.stride[0]);
  }
  CheckLaunch();
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
    LogitsFew<<<grid, kThreads, 0, queue.stream()>>>(p);
    CheckLaunch();
  } else {
    WithElement(x, [&]<typename T>() { LaunchLogits<T>(queue, p); });
  }
}

void RouteRows(Queue& queue, const Tensor& logits, const Routing& r) {
  const ChoiceParams p{logits.As<const float, 2>().data, logits.stride[0], r};
  const int blocks = Blocks(r.tokens, kBlockTokens);
  ChooseExperts<<<blocks, kThreads, 0, queue.stream()>>>(p);
  CheckLaunch();
  if (blocks == 1) return;
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
