// Rows are numbered as in moe_route_cuda.cu: blocks of 256 tokens mark in bit sets who chose which
// expert, and a row's place is the number of marks before its own. Here a place beyond the capacity
// is no row, and the CPU is told how many rows there are.
#include "kernels/moe/moe_backward_cuda.h"

#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/moe/moe_kernels.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockTokens = 256;
constexpr int kMaxExperts = 256;

// The lanes that share a token's experts, and how many experts a lane has, kLanes apart.
template <int kLanesOfToken, int kExpertsOfLane>
struct Split {
  static constexpr int kLanes = kLanesOfToken, kSlots = kExpertsOfLane;
};

// Calls f.operator()<Split<...>>() with the narrowest split that holds the experts.
template <typename F>
void WithSplit(int64_t num_experts, F&& f) {
  if (num_experts <= 8) return f.template operator()<Split<8, 1>>();
  if (num_experts <= 32) return f.template operator()<Split<32, 1>>();
  f.template operator()<Split<32, kMaxExperts / 32>>();
}

unsigned Blocks(int64_t items, int64_t a_block) {
  return static_cast<unsigned>((items + a_block - 1) / a_block);
}

// ---- who goes where

struct Counting {
  const int32_t* expert;  // [T, k]
  const float* share;
  int32_t* row;
  int32_t* token;
  float* weight;
  const float* logits;
  int64_t logits_stride;
  int64_t tokens;
  int k, num_experts;
  int64_t capacity;
  int32_t*
      block_rows;      // [ceil(T / 256), E]  rows of each block, then those of the blocks before it
  double* block_sums;  // [ceil(T / 256), E]  of probabilities
  double* totals;      // [2, E]  rows, mean probability

  __host__ __device__ int64_t num_blocks() const {
    return (tokens + kBlockTokens - 1) / kBlockTokens;
  }
};

__global__ void __launch_bounds__(kThreads) CountRows(const __grid_constant__ Counting c) {
  __shared__ uint32_t chose[kMaxExperts][kBlockTokens / 32];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens;
  const int tokens = static_cast<int>(min(c.tokens - first, static_cast<int64_t>(kBlockTokens)));
  for (int i = threadIdx.x; i < c.num_experts * (kBlockTokens / 32); i += kThreads) {
    chose[i / (kBlockTokens / 32)][i % (kBlockTokens / 32)] = 0;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < tokens * c.k; i += kThreads) {
    const int t = i / c.k;
    atomicOr(&chose[c.expert[first * c.k + i]][t / 32], 1u << (t % 32));
  }
  __syncthreads();
  for (int i = threadIdx.x; i < tokens * c.k; i += kThreads) {
    const int t = i / c.k;
    const uint32_t* const who = chose[c.expert[first * c.k + i]];
    int before = __popc(who[t / 32] & ((1u << (t % 32)) - 1));
    for (int j = 0; j < t / 32; ++j) before += __popc(who[j]);
    c.row[first * c.k + i] = before;
  }
  for (int e = threadIdx.x; e < c.num_experts; e += kThreads) {
    int rows = 0;
    for (int j = 0; j < kBlockTokens / 32; ++j) rows += __popc(chose[e][j]);
    c.block_rows[static_cast<int64_t>(blockIdx.x) * c.num_experts + e] = rows;
  }
}

template <int kLanes, typename F>
__device__ __forceinline__ float Fold(float x, F&& fold) {
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) x = fold(x, __shfl_xor_sync(~0u, x, d));
  return x;
}

// The softmax of a row: p[j] is that of expert lane + kLanes j. Whole warps call it.
template <typename S>
__device__ __forceinline__ void Softmax(const float* logits, int num_experts,
                                        float (&p)[S::kSlots]) {
  const int lane = threadIdx.x % S::kLanes;
  float top = -INFINITY, sum = 0.0f;
#pragma unroll
  for (int j = 0; j < S::kSlots; ++j) {
    const int e = lane + S::kLanes * j;
    p[j] = e < num_experts ? logits[e] : -INFINITY;
    top = fmaxf(top, p[j]);
  }
  top = Fold<S::kLanes>(top, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
  for (int j = 0; j < S::kSlots; ++j) {
    p[j] = lane + S::kLanes * j < num_experts ? expf(p[j] - top) : 0.0f;
    sum += p[j];
  }
  sum = Fold<S::kLanes>(sum, [](float a, float b) { return a + b; });
#pragma unroll
  for (int j = 0; j < S::kSlots; ++j) p[j] /= sum;
}

template <typename S>
__global__ void __launch_bounds__(kThreads) SumProbabilities(const __grid_constant__ Counting c) {
  constexpr int kGroups = kThreads / S::kLanes, kExperts = S::kLanes * S::kSlots;
  __shared__ double part[kGroups][kExperts];
  const int group = threadIdx.x / S::kLanes, lane = threadIdx.x % S::kLanes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens;
  double sum[S::kSlots] = {};
#pragma unroll 4
  for (int i = 0; i < kBlockTokens; i += kGroups) {
    const int64_t t = first + i + group;
    float p[S::kSlots];
    Softmax<S>(c.logits + min(t, c.tokens - 1) * c.logits_stride, c.num_experts, p);
    if (t >= c.tokens) continue;
#pragma unroll
    for (int j = 0; j < S::kSlots; ++j) sum[j] += static_cast<double>(p[j]);
  }
#pragma unroll
  for (int j = 0; j < S::kSlots; ++j) part[group][lane + S::kLanes * j] = sum[j];
  __syncthreads();
  for (int e = threadIdx.x; e < c.num_experts; e += kThreads) {
    double total = 0.0;
    for (int g = 0; g < kGroups; ++g) total += part[g][e];
    c.block_sums[static_cast<int64_t>(blockIdx.x) * c.num_experts + e] = total;
  }
}

// A block an expert, a thread some neighbouring blocks of tokens.
__global__ void __launch_bounds__(kThreads) AddBlocks(const __grid_constant__ Counting c) {
  __shared__ int rows[kThreads];
  __shared__ double sums[kThreads];
  const int e = blockIdx.x, num_blocks = static_cast<int>(c.num_blocks());
  const int length = (num_blocks + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * length, num_blocks);
  const int end = min(begin + length, num_blocks);
  int mine = 0;
  double sum = 0.0;
  for (int b = begin; b < end; ++b) {
    mine += c.block_rows[b * c.num_experts + e];
    sum += c.block_sums[b * c.num_experts + e];
  }
  rows[threadIdx.x] = mine;
  sums[threadIdx.x] = sum;
  for (int d = 1; d < kThreads; d *= 2) {  // rows up to each thread's own
    __syncthreads();
    const int before = threadIdx.x >= d ? rows[threadIdx.x - d] : 0;
    const double right = threadIdx.x + d < kThreads ? sums[threadIdx.x + d] : 0.0;
    __syncthreads();
    rows[threadIdx.x] += before;
    if (threadIdx.x % (2 * d) == 0) sums[threadIdx.x] += right;
  }
  __syncthreads();
  int place = rows[threadIdx.x] - mine;
  for (int b = begin; b < end; ++b) {
    const int n = c.block_rows[b * c.num_experts + e];
    c.block_rows[b * c.num_experts + e] = place;
    place += n;
  }
  if (threadIdx.x == kThreads - 1) c.totals[e] = rows[threadIdx.x];
  if (threadIdx.x == 0) c.totals[c.num_experts + e] = sums[0] / static_cast<double>(c.tokens);
}

__global__ void __launch_bounds__(kThreads) PlaceRows(const __grid_constant__ Counting c) {
  __shared__ int kept_rows[kMaxExperts], first[kMaxExperts];
  const int64_t capacity = c.capacity == 0 ? c.tokens : c.capacity;
  for (int e = threadIdx.x; e < c.num_experts; e += kThreads) {
    kept_rows[e] = static_cast<int>(min(static_cast<int64_t>(c.totals[e]), capacity));
  }
  __syncthreads();
  for (int e = threadIdx.x; e < c.num_experts; e += kThreads) {
    int sum = 0;
    for (int i = 0; i < e; ++i) sum += kept_rows[i];
    first[e] = sum;
  }
  __syncthreads();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= c.tokens * c.k) return;
  const int64_t t = i / c.k;
  const int e = c.expert[i];
  const int place = c.block_rows[t / kBlockTokens * c.num_experts + e] + c.row[i];
  const bool kept = place < capacity;
  c.row[i] = kept ? first[e] + place : -1;
  if (!kept) return;
  c.token[first[e] + place] = static_cast<int32_t>(t);
  c.weight[first[e] + place] = c.share[i];
}

// ---- gradients of the router's logits

// A thread a logit.
__global__ void __launch_bounds__(kThreads)
    RouteGradient(const int32_t* expert, const float* share, const int32_t* row,
                  const float* weighted, int64_t tokens, int k, int num_experts, float* d_logits,
                  int64_t stride) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= tokens * num_experts) return;
  const int64_t t = at / num_experts;
  const int e = static_cast<int>(at % num_experts);
  float sum = 0.0f, own_share = 0.0f, own = 0.0f;
  for (int64_t i = t * k; i < (t + 1) * k; ++i) {
    const float gradient = row[i] < 0 ? 0.0f : weighted[row[i]];
    sum += gradient;
    if (expert[i] == e) {
      own_share = share[i];
      own = gradient;
    }
  }
  d_logits[t * stride + e] = fmaf(-own_share, sum, own);
}

struct ExpertScales {
  float of[kMaxExperts];
};

template <typename S>
__global__ void __launch_bounds__(kThreads)
    BalanceGradient(const float* logits, int64_t stride, int64_t tokens, int num_experts,
                    const __grid_constant__ ExpertScales scales, float* d_logits,
                    int64_t d_stride) {
  constexpr int kGroups = kThreads / S::kLanes;
  // Lanes that read different parameters would wait for one another.
  __shared__ float scale[kMaxExperts];
  scale[threadIdx.x] = scales.of[threadIdx.x];
  static_assert(kThreads == kMaxExperts);
  __syncthreads();
  const int lane = threadIdx.x % S::kLanes;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / S::kLanes;
  const int64_t t = min(group, tokens - 1);
  float p[S::kSlots], mean = 0.0f;
  Softmax<S>(logits + t * stride, num_experts, p);
#pragma unroll
  for (int j = 0; j < S::kSlots; ++j) mean = fmaf(p[j], scale[lane + S::kLanes * j], mean);
  mean = Fold<S::kLanes>(mean, [](float a, float b) { return a + b; });
  if (group >= tokens) return;
#pragma unroll
  for (int j = 0; j < S::kSlots; ++j) {
    const int e = lane + S::kLanes * j;
    if (e >= num_experts) continue;
    float& d = d_logits[t * d_stride + e];
    d = fmaf(p[j], scale[e] - mean, d);
  }
}

}  // namespace

TrainDispatch MakeTrainDispatch(Queue& queue, const TrainDispatchArgs& a) {
  const int64_t tokens = a.logits.dim(0), num_experts = a.logits.dim(1);
  const int64_t k = a.room.expert.dim(1);
  Check(num_experts <= kMaxExperts && k <= 8 && tokens * k < int64_t{1} << 31,
        "MakeTrainDispatch on a GPU takes up to 256 experts, 8 of them a token, 2^31 rows");
  Scratch scratch(queue);
  const int64_t blocks = Blocks(tokens, kBlockTokens);
  const auto logits = a.logits.As<const float, 2>();
  const Counting c{.expert = a.room.expert.As<int32_t, 2>().data,
                   .share = a.room.share.As<float, 2>().data,
                   .row = a.room.row.As<int32_t, 2>().data,
                   .token = a.room.token.As<int32_t, 1>().data,
                   .weight = a.room.weight.As<float, 1>().data,
                   .logits = logits.data,
                   .logits_stride = logits.stride[0],
                   .tokens = tokens,
                   .k = static_cast<int>(k),
                   .num_experts = static_cast<int>(num_experts),
                   .capacity = a.capacity,
                   .block_rows = scratch.Get<int32_t>(blocks * num_experts),
                   .block_sums = scratch.Get<double>(blocks * num_experts),
                   .totals = scratch.Get<double>(2 * num_experts)};
  std::vector<double> totals(static_cast<size_t>(2 * num_experts));
  if (tokens > 0) {
    Routing routing{.tokens = tokens, .k = k, .num_experts = num_experts};
    routing.expert = a.room.expert.As<int32_t, 2>().data;
    routing.weight = a.room.share.As<float, 2>().data;
    cuda::ChooseExperts(queue, a.logits, routing);
    const auto grid = static_cast<unsigned>(blocks);
    CountRows<<<grid, kThreads, 0, queue.stream()>>>(c);
    CheckLaunch();
    WithSplit(num_experts,
              [&]<typename S>() { SumProbabilities<S><<<grid, kThreads, 0, queue.stream()>>>(c); });
    CheckLaunch();
    AddBlocks<<<static_cast<unsigned>(num_experts), kThreads, 0, queue.stream()>>>(c);
    CheckLaunch();
    PlaceRows<<<Blocks(tokens * k, kThreads), kThreads, 0, queue.stream()>>>(c);
    CheckLaunch();
    queue.CopyToHost(totals.data(), c.totals, 2 * num_experts * SizeOf(DType::kF64));
  }
  TrainDispatch d;
  static_cast<DispatchRoom&>(d) = a.room;
  d.offset.push_back(0);
  for (int64_t e = 0; e < num_experts; ++e) {
    const auto count = static_cast<int64_t>(totals[static_cast<size_t>(e)]);
    const int64_t kept = a.capacity == 0 ? count : std::min(count, a.capacity);
    d.counts.push_back(count);
    d.offset.push_back(d.offset.back() + kept);
    d.dropped += count - kept;
  }
  d.probability.assign(totals.begin() + num_experts, totals.end());
  return d;
}

void RouteBackward(Queue& queue, const TrainDispatch& d, const Tensor& weighted_gradient,
                   const Tensor& d_logits) {
  const int64_t tokens = d_logits.dim(0), num_experts = d_logits.dim(1);
  if (tokens == 0) return;
  RouteGradient<<<Blocks(tokens * num_experts, kThreads), kThreads, 0, queue.stream()>>>(
      d.expert.As<const int32_t, 2>().data, d.share.As<const float, 2>().data,
      d.row.As<const int32_t, 2>().data, weighted_gradient.As<const float, 1>().data, tokens,
      static_cast<int>(d.row.dim(1)), static_cast<int>(num_experts), d_logits.As<float, 2>().data,
      d_logits.stride[0]);
  CheckLaunch();
}

void BalanceBackward(Queue& queue, const Tensor& logits, const std::vector<double>& weight,
                     double scale, const Tensor& d_logits) {
  const int64_t tokens = logits.dim(0), num_experts = logits.dim(1);
  Check(num_experts <= kMaxExperts, "BalanceBackward on a GPU takes up to 256 experts");
  if (tokens == 0) return;
  ExpertScales scales{};
  for (size_t e = 0; e < weight.size(); ++e) scales.of[e] = static_cast<float>(scale * weight[e]);
  WithSplit(num_experts, [&]<typename S>() {
    BalanceGradient<S><<<Blocks(tokens, kThreads / S::kLanes), kThreads, 0, queue.stream()>>>(
        logits.As<const float, 2>().data, logits.stride[0], tokens, static_cast<int>(num_experts),
        scales, d_logits.As<float, 2>().data, d_logits.stride[0]);
  });
  CheckLaunch();
}

}  // namespace mm01::cuda
