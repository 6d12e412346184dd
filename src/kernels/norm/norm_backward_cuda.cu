// A block takes a piece of rows, one after another. Of each row the squares and the product with
// the gradient are summed at once; what the piece adds to d_weight stays in registers. A second
// kernel adds up the pieces. Rows of more than 8,192 numbers, and such as do not begin at multiples
// of 16 bytes, take a slower kernel that reads them twice.
#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/any_rows.cuh"
#include "kernels/norm/norm_backward_cuda.h"

namespace mm01::cuda {
namespace {

constexpr int kPieceRows = 32;
constexpr int kEights = 2;  // pieces of eight numbers a thread
constexpr int kMostThreads = 512;
constexpr int64_t kMostInRegisters = int64_t{kMostThreads} * kEights * 8;
constexpr int kAnyThreads = 256;

struct Norms {
  AnyRows x, gate, d_out, carried, d_x, d_gate;
  const float* weight;
  float eps;
  float on_out, on_x;  // what is carried times one of these is added there; the other is 0
  int64_t rows, width;
  float* shares;  // [pieces, D]  of d_weight
};

// Both sums over the block, for every thread: lanes in halves, then warps in order. Calls take
// turns with two rooms, so that one barrier each is enough.
__device__ __forceinline__ float2 BlockSums(float2 x, int turn) {
  __shared__ float2 rooms[2][kMostThreads / 32];
  float2* warps = rooms[turn];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    x.x += __shfl_xor_sync(0xffffffffu, x.x, step);
    x.y += __shfl_xor_sync(0xffffffffu, x.y, step);
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  float2 sum = warps[0];
  for (unsigned w = 1; w < blockDim.x / 32; ++w) sum.x += warps[w].x, sum.y += warps[w].y;
  return sum;
}

// Of a row: 1 / sqrt(mean(x^2) + eps) and its cube times mean(weight dy x).
struct Factors {
  float root, pull;

  __device__ __forceinline__ Factors(float2 sums, const Norms& n)
      : root(1.0f / sqrtf(sums.x / static_cast<float>(n.width) + n.eps)),
        pull(root * root * root * (sums.y / static_cast<float>(n.width))) {}
};

// What a thread has of a row, as it lies in memory.
template <bool kGated, bool kCarried, int kPieces>
struct RawRow {
  Raw8 x[kPieces], dy[kPieces], gate[kGated ? kPieces : 1], carried[kCarried ? kPieces : 1];
};

__device__ __forceinline__ int64_t Column(int i) {
  return static_cast<int64_t>(threadIdx.x + i * blockDim.x) * 8;
}

template <bool kGated, bool kCarried, int kPieces>
__device__ __forceinline__ void Fetch(const Norms& n, int64_t row,
                                      RawRow<kGated, kCarried, kPieces>& raw) {
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    if (Column(i) >= n.width) continue;
    raw.x[i] = n.x.Fetch8(row, Column(i));
    raw.dy[i] = n.d_out.Fetch8(row, Column(i));
    if constexpr (kGated) raw.gate[i] = n.gate.Fetch8(row, Column(i));
    if constexpr (kCarried) raw.carried[i] = n.carried.Fetch8(row, Column(i));
  }
}

// kPieces eights of a row a thread. With one there is room to fetch the next row ahead.
template <bool kGated, bool kCarried, int kPieces>
__global__ void __launch_bounds__(kMostThreads) RowsInRegisters(const __grid_constant__ Norms n) {
  constexpr bool kAhead = kPieces == 1;
  float share[kPieces][8] = {};
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPieceRows;
  const int64_t end = min(begin + kPieceRows, n.rows);
  RawRow<kGated, kCarried, kPieces> next;
  if constexpr (kAhead) Fetch(n, begin, next);
  for (int64_t row = begin; row < end; ++row) {
    if constexpr (!kAhead) Fetch(n, row, next);
    const RawRow<kGated, kCarried, kPieces> raw = next;
    if constexpr (kAhead) Fetch(n, min(row + 1, end - 1), next);
    float x[kPieces][8], dy[kPieces][8];
    float2 sums = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (Column(i) >= n.width) continue;
      raw.x[i].Unpack(x[i]);
      raw.dy[i].Unpack(dy[i]);
      float weight[8], other[8];
      if constexpr (kGated) raw.gate[i].Unpack(other);
      if constexpr (kCarried) raw.carried[i].Unpack(other);
      Load8(n.weight + Column(i), weight);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        if constexpr (kGated) dy[i][c] *= Sigmoid(other[c]);
        if constexpr (kCarried) dy[i][c] = fmaf(n.on_out, other[c], dy[i][c]);
        sums.x = fmaf(x[i][c], x[i][c], sums.x);
        sums.y = fmaf(dy[i][c] * weight[c], x[i][c], sums.y);
      }
    }
    const Factors f(BlockSums(sums, static_cast<int>(row & 1)), n);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (Column(i) >= n.width) continue;
      // Weights and gates once more, from the cache: the registers are full.
      float weight[8], other[8] = {};
      Load8(n.weight + Column(i), weight);
      if constexpr (kGated) n.gate.Fetch8(row, Column(i)).Unpack(other);
      if constexpr (kCarried) {
        if (n.on_x != 0.0f) n.carried.Fetch8(row, Column(i)).Unpack(other);
      }
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const float scaled = x[i][c] * f.root, weighted = dy[i][c] * weight[c];
        share[i][c] = fmaf(dy[i][c], scaled, share[i][c]);
        if constexpr (kGated) other[c] = weighted * scaled * (1.0f - Sigmoid(other[c]));
        dy[i][c] = weighted * f.root - x[i][c] * f.pull;
        if constexpr (kCarried) dy[i][c] = fmaf(n.on_x, other[c], dy[i][c]);
      }
      n.d_x.Set8(row, Column(i), dy[i]);
      if constexpr (kGated) n.d_gate.Set8(row, Column(i), other);
    }
  }
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    if (Column(i) < n.width) Store8(n.shares + blockIdx.x * n.width + Column(i), share[i]);
  }
}

template <bool kGated, bool kCarried>
__global__ void __launch_bounds__(kAnyThreads) RowsOfAnyKind(const __grid_constant__ Norms n) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPieceRows;
  const int64_t end = min(begin + kPieceRows, n.rows);
  float* share = n.shares + blockIdx.x * n.width;
  for (int64_t i = threadIdx.x; i < n.width; i += kAnyThreads) share[i] = 0.0f;
  for (int64_t row = begin; row < end; ++row) {
    float2 sums = {0.0f, 0.0f};
    for (int64_t i = threadIdx.x; i < n.width; i += kAnyThreads) {
      const float x = n.x.Get(row, i);
      float dy = n.d_out.Get(row, i);
      if constexpr (kGated) dy *= Sigmoid(n.gate.Get(row, i));
      if constexpr (kCarried) dy = fmaf(n.on_out, n.carried.Get(row, i), dy);
      sums.x = fmaf(x, x, sums.x);
      sums.y = fmaf(dy * n.weight[i], x, sums.y);
    }
    const Factors f(BlockSums(sums, static_cast<int>(row & 1)), n);
    for (int64_t i = threadIdx.x; i < n.width; i += kAnyThreads) {
      const float x = n.x.Get(row, i), weight = n.weight[i];
      float dy = n.d_out.Get(row, i);
      const float open = kGated ? Sigmoid(n.gate.Get(row, i)) : 1.0f;
      const float carried = kCarried ? n.carried.Get(row, i) : 0.0f;
      dy *= open;
      if constexpr (kCarried) dy = fmaf(n.on_out, carried, dy);
      share[i] = fmaf(dy, x * f.root, share[i]);
      if constexpr (kGated) n.d_gate.Set(row, i, dy * weight * (x * f.root) * (1.0f - open));
      n.d_x.Set(row, i, fmaf(n.on_x, carried, dy * weight * f.root - x * f.pull));
    }
  }
}

// d_weight += the sum of the shares. A block takes 32 columns; each of its warps a run of pieces in
// order, and the warps' sums are added in order.
constexpr int kShareWarps = 32;

__global__ void __launch_bounds__(32 * kShareWarps)
    AddShares(const float* shares, int64_t pieces, int64_t width, float* d_weight) {
  __shared__ float sums[kShareWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  const int64_t run = (pieces + kShareWarps - 1) / kShareWarps;
  const int64_t end = min((warp + 1) * run, pieces);
  float sum = 0.0f;
  if (i < width) {
#pragma unroll 32
    for (int64_t p = warp * run; p < end; ++p) sum += shares[p * width + i];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || i >= width) return;
  for (int w = 1; w < kShareWarps; ++w) sum += sums[w][lane];
  d_weight[i] += sum;
}

template <bool kGated, bool kCarried>
void Launch(Queue& queue, const Norms& n, bool aligned) {
  const auto blocks = static_cast<unsigned>((n.rows + kPieceRows - 1) / kPieceRows);
  if (aligned) {
    const bool is_short = n.width <= 32 * 8;  // one warp then has a row
    const int64_t threads = is_short ? 32 : (n.width / 8 + kEights - 1) / kEights;
    const auto rows_in_registers = is_short ? RowsInRegisters<kGated, kCarried, 1>
                                            : RowsInRegisters<kGated, kCarried, kEights>;
    rows_in_registers<<<blocks, static_cast<unsigned>((threads + 31) / 32 * 32), 0,
                        queue.stream()>>>(n);
  } else {
    RowsOfAnyKind<kGated, kCarried><<<blocks, kAnyThreads, 0, queue.stream()>>>(n);
  }
  CheckLaunch();
}

template <bool kGated, bool kCarried>
void Run(Queue& queue, const GatedNormBackwardArgs& a, const CarriedGradient& residual) {
  constexpr const char* kShapes = "NormBackward: shapes or types disagree";
  bool aligned = true;
  const auto rows_of = [&](const Tensor& t) {
    Check((t.dtype == DType::kF32 || t.dtype == DType::kBF16) && t.rank == 2 && t.stride[1] == 1 &&
              t.shape == a.x.shape,
          kShapes);
    aligned = aligned && HasAlignedRows(t);
    return AnyRows(t);
  };
  const int64_t rows = a.x.dim(0), width = a.x.dim(1);
  const auto weight = a.weight.As<const float, 1>();
  const auto d_weight = a.d_weight.As<float, 1>();
  Check(weight.dim(0) == width && d_weight.dim(0) == width, kShapes);
  if (rows == 0 || width == 0) return;
  const int64_t pieces = (rows + kPieceRows - 1) / kPieceRows;
  Scratch scratch(queue);
  const Norms n{.x = rows_of(a.x),
                .gate = kGated ? rows_of(a.gate) : AnyRows(),
                .d_out = rows_of(a.d_out),
                .carried = kCarried ? rows_of(residual.rows) : AnyRows(),
                .d_x = rows_of(a.d_x),
                .d_gate = kGated ? rows_of(a.d_gate) : AnyRows(),
                .weight = weight.data,
                .eps = a.eps,
                .on_out = residual.of_norm ? residual.alpha : 0.0f,
                .on_x = residual.of_norm ? 0.0f : residual.alpha,
                .rows = rows,
                .width = width,
                .shares = scratch.Get<float>(pieces * width)};
  aligned = aligned && width % 8 == 0 && width <= kMostInRegisters && HasAlignedRows(a.weight);
  Launch<kGated, kCarried>(queue, n, aligned);
  AddShares<<<static_cast<unsigned>((width + 31) / 32), 32 * kShareWarps, 0, queue.stream()>>>(
      n.shares, pieces, width, d_weight.data);
  CheckLaunch();
}

}  // namespace

void NormBackward(Queue& queue, const NormBackwardArgs& a) {
  const auto run = a.carried.rows.empty() ? Run<false, false> : Run<false, true>;
  run(queue,
      {.x = a.x,
       .weight = a.weight,
       .eps = a.eps,
       .d_out = a.d_out,
       .d_x = a.d_x,
       .d_weight = a.d_weight},
      a.carried);
}

void GatedNormBackward(Queue& queue, const GatedNormBackwardArgs& a) {
  Check(!a.gate.empty(), "GatedNormBackward: no gate");
  Run<true, false>(queue, a, {});
}

}  // namespace mm01::cuda
