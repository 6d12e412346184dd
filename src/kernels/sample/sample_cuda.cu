#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/sample/sample_cuda.h"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr uint32_t kMasked = 0x007fffff;    // the key of -infinity
constexpr uint32_t kInfinite = 0xff800000;  // of +infinity

// Keys order as the numbers do; both zeros have one. NaN ranks above all.
__device__ __forceinline__ uint32_t KeyOf(float x) {
  if (isnan(x)) return 0xffffffffu;
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ uint64_t Larger(uint64_t a, uint64_t b) {
  return a > b ? a : b;
}

__global__ void __launch_bounds__(kThreads)
    GreedyRows(const float* logits, int64_t stride, int vocabulary, int32_t* token) {
  const float* row = logits + blockIdx.x * stride;
  uint64_t best = 0;  // key above, the complement of the id below
#pragma unroll 8
  for (int id = threadIdx.x; id < vocabulary; id += kThreads) {
    const uint64_t key = KeyOf(row[id]);
    best = Larger(best, key << 32 | ~static_cast<uint32_t>(id));
  }
  __shared__ uint64_t warps[kWarps];
  for (int step = 16; step > 0; step /= 2) {
    best = Larger(best, __shfl_xor_sync(0xffffffffu, best, step));
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < kWarps; ++w) best = Larger(best, warps[w]);
  const auto key = static_cast<uint32_t>(best >> 32);
  const bool sound = key > kMasked && key < kInfinite;
  token[blockIdx.x] = sound ? static_cast<int32_t>(~static_cast<uint32_t>(best)) : -1;
}

struct TopRows {
  const float* logits;
  int64_t logits_stride;
  int vocabulary, k;
  int32_t* id;
  int64_t id_stride;
  float* value;
  int64_t value_stride;
  int32_t* count;
};

// How many of the block's threads before this one, and how many in all, hold what `mine` counts.
struct Ranks {
  int before, all;
};
__device__ __forceinline__ Ranks BlockRanks(int mine, int* warps) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int upto = mine;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, upto, step);
    if (lane >= step) upto += other;
  }
  if (lane == 31) warps[warp] = upto;
  __syncthreads();
  Ranks r{upto - mine, 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) r.before += warps[w];
    r.all += warps[w];
  }
  __syncthreads();
  return r;
}

// The key of the k-th largest is found eight bits at a time from counts; a last walk in order of id
// takes all above it and, of its equals, the first.
__global__ void __launch_bounds__(kThreads) TopTokensRows(const __grid_constant__ TopRows a) {
  __shared__ int counts[256];
  __shared__ int warps[kWarps];
  __shared__ uint32_t chosen;
  __shared__ int wanted;  // of the tokens that share the prefix found so far
  const float* row = a.logits + blockIdx.x * a.logits_stride;
  uint32_t prefix = 0;
  if (threadIdx.x == 0) wanted = a.k;
  int unmasked = 0;
  bool is_broken = false;
  for (int pass = 0; pass < 4; ++pass) {
    const int shift = 24 - 8 * pass;
    if (threadIdx.x < 256) counts[threadIdx.x] = 0;
    __syncthreads();
    constexpr int kAhead = 8;  // loads in flight
    for (int first = 0; first < a.vocabulary; first += kThreads * kAhead) {
      uint32_t keys[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int id = first + i * kThreads + static_cast<int>(threadIdx.x);
        keys[i] = id < a.vocabulary ? KeyOf(row[id]) : kMasked;
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        is_broken |= keys[i] >= kInfinite;
        const bool counted = keys[i] > kMasked && (pass == 0 || keys[i] >> (shift + 8) == prefix);
        const uint32_t digit = counted ? keys[i] >> shift & 255 : 256;
        // One addition for all lanes of a digit: logits crowd into few of them.
        const uint32_t peers = __match_any_sync(0xffffffffu, digit);
        const bool leads = __ffs(static_cast<int>(peers)) - 1 == static_cast<int>(threadIdx.x % 32);
        if (counted && leads) atomicAdd(&counts[digit], __popc(peers));
      }
    }
    __syncthreads();
    if (pass == 0) {
      for (int d = 0; d < 256; ++d) unmasked += counts[d];
    }
    if (threadIdx.x == 0) {
      int left = min(wanted, unmasked), digit = 255;
      while (digit > 0 && counts[digit] < left) left -= counts[digit--];
      chosen = prefix << 8 | static_cast<uint32_t>(digit);
      wanted = left;
    }
    __syncthreads();
    prefix = chosen;
  }
  const bool broken = __syncthreads_or(is_broken);
  if (threadIdx.x == 0) a.count[blockIdx.x] = broken || unmasked == 0 ? -1 : min(a.k, unmasked);
  if (broken || unmasked == 0) return;

  const int equals = wanted;
  int taken_above = 0, seen_equal = 0;
  constexpr int kEach = 4;  // neighbours a thread
  for (int first = 0; first < a.vocabulary; first += kThreads * kEach) {
    const int mine = first + static_cast<int>(threadIdx.x) * kEach;
    float x[kEach];
    int above = 0, equal = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      x[i] = mine + i < a.vocabulary ? row[mine + i] : -INFINITY;
      const uint32_t key = KeyOf(x[i]);
      above += key > prefix;
      equal += key == prefix && key > kMasked;
    }
    // Both counts in one: a block's share of either is at most 4,096.
    const Ranks r = BlockRanks(above << 16 | equal, warps);
    int rank_above = taken_above + (r.before >> 16), rank_equal = seen_equal + (r.before & 0xffff);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const uint32_t key = KeyOf(x[i]);
      const bool is_equal = key == prefix && key > kMasked;
      if (key > prefix || (is_equal && rank_equal < equals)) {
        const int at = rank_above + min(rank_equal, equals);
        a.id[blockIdx.x * a.id_stride + at] = mine + i;
        a.value[blockIdx.x * a.value_stride + at] = x[i];
      }
      rank_above += key > prefix;
      rank_equal += is_equal;
    }
    taken_above += r.all >> 16;
    seen_equal += r.all & 0xffff;
  }
}

// Returns the stride of a row.
int64_t CheckLogits(const Tensor& logits, int64_t vocab_used) {
  const auto x = logits.As<const float, 2>();
  Check(0 < vocab_used && vocab_used <= x.dim(1) && vocab_used < (int64_t{1} << 31),
        "sampling: the vocabulary is not within the logits");
  return x.stride[0];
}

}  // namespace

void Greedy(Queue& queue, const GreedyArgs& a) {
  const int64_t stride = CheckLogits(a.logits, a.vocab_used), rows = a.logits.dim(0);
  const auto token = a.token.As<int32_t, 1>();
  Check(token.dim(0) == rows, "Greedy: shapes disagree");
  if (rows == 0) return;
  GreedyRows<<<static_cast<unsigned>(rows), kThreads, 0, queue.stream()>>>(
      static_cast<const float*>(a.logits.data), stride, static_cast<int>(a.vocab_used), token.data);
  CheckLaunch();
}

void TopTokens(Queue& queue, const TopTokensArgs& a) {
  const int64_t stride = CheckLogits(a.logits, a.vocab_used), rows = a.logits.dim(0);
  const auto id = a.id.As<int32_t, 2>();
  const auto value = a.value.As<float, 2>();
  const auto count = a.count.As<int32_t, 1>();
  Check(id.dim(0) == rows && id.shape == value.shape && count.dim(0) == rows && id.dim(1) > 0 &&
            id.dim(1) < (int64_t{1} << 31),
        "TopTokens: shapes disagree");
  if (rows == 0) return;
  TopTokensRows<<<static_cast<unsigned>(rows), kThreads, 0, queue.stream()>>>(
      {.logits = static_cast<const float*>(a.logits.data),
       .logits_stride = stride,
       .vocabulary = static_cast<int>(a.vocab_used),
       .k = static_cast<int>(id.dim(1)),
       .id = id.data,
       .id_stride = id.stride[0],
       .value = value.data,
       .value_stride = value.stride[0],
       .count = count.data});
  CheckLaunch();
}

}  // namespace mm01::cuda
