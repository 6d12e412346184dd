// The rows of moe_backward.h on their way to their experts and back.
#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/gemm/gemm_backward_cuda.h"
#include "kernels/moe/moe_backward_cuda.h"
#include "kernels/norm/norm_cuda.h"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

unsigned Blocks(int64_t items, int64_t a_block) {
  return static_cast<unsigned>((items + a_block - 1) / a_block);
}

constexpr int kGatheredRows = 4;  // of a warp, all on their way at once

struct Gathering {
  const int32_t* token;  // [R]
  const float* weight;   // [R]  null: 1
  int64_t rows;
  int width;
  int64_t x_stride, out_stride;
};

// A warp kGatheredRows rows, kWide columns a lane.
template <int kWide, typename T>
__global__ void __launch_bounds__(kThreads)
    Gather(const __grid_constant__ Gathering g, const T* x, T* out) {
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * kGatheredRows;
  for (int at = threadIdx.x % 32 * kWide; at < g.width; at += 32 * kWide) {
    float v[kGatheredRows][kWide];
#pragma unroll
    for (int i = 0; i < kGatheredRows; ++i) {
      const int64_t r = min(first + i, g.rows - 1);
      Get(x + g.token[r] * g.x_stride + at, v[i]);
    }
#pragma unroll
    for (int i = 0; i < kGatheredRows; ++i) {
      if (first + i >= g.rows) break;
      if (g.weight != nullptr) {
        const float by = g.weight[first + i];
#pragma unroll
        for (int c = 0; c < kWide; ++c) v[i][c] *= by;
      }
      Put(out + (first + i) * g.out_stride + at, v[i]);
    }
  }
}

struct Combining {
  const int32_t* row;  // [T, k]
  const float* share;  // null: 1
  int64_t tokens;
  int k, width;
  int64_t rows_stride, y_stride;
};

// A warp a token, kWide columns a lane.
template <int kWide, typename T>
__global__ void __launch_bounds__(kThreads)
    Combine(const __grid_constant__ Combining c, const T* rows, T* y) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (t >= c.tokens) return;
  for (int at = threadIdx.x % 32 * kWide; at < c.width; at += 32 * kWide) {
    float sum[kWide] = {};
    for (int64_t i = t * c.k; i < (t + 1) * c.k; ++i) {
      const int64_t row = c.row[i];
      if (row < 0) continue;
      const float weight = c.share ? c.share[i] : 1.0f;
      float v[kWide];
      Get(rows + row * c.rows_stride + at, v);
#pragma unroll
      for (int j = 0; j < kWide; ++j) sum[j] = fmaf(weight, v[j], sum[j]);
    }
    Put(y + t * c.y_stride + at, sum);
  }
}

template <typename T>
struct NormPart {
  const T* x;
  T *sum, *out;         // sum null: nobody reads it
  const float* weight;  // [D]
  int64_t x_stride, sum_stride, out_stride;
  float alpha, beta, eps;
};

// A warp a token, eight columns a lane. Sums of the norm as those of AddNorm: a lane's numbers in
// order, lanes in halves.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    CombineNorm(const __grid_constant__ Combining c, const __grid_constant__ NormPart<T> part,
                const T* rows) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (t >= c.tokens) return;
  const int at = threadIdx.x % 32 * 8;
  const bool is_mine = at < c.width;
  float x[8] = {}, branch[8] = {}, squares = 0.0f;
  if (is_mine) {
    Load8(part.x + t * part.x_stride + at, x);
    for (int64_t i = t * c.k; i < (t + 1) * c.k; ++i) {
      const int64_t row = c.row[i];
      if (row < 0) continue;
      float v[8];
      Load8(rows + row * c.rows_stride + at, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) branch[j] = fmaf(c.share[i], v[j], branch[j]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      x[j] = part.alpha * x[j] + part.beta * branch[j];
      squares = fmaf(x[j], x[j], squares);
    }
    if (part.sum) Store8(part.sum + t * part.sum_stride + at, x);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
  if (!is_mine) return;
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(c.width) + part.eps);
  float weight[8];
  Load8(part.weight + at, weight);
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] = x[j] * scale * weight[j];
  Store8(part.out + t * part.out_stride + at, x);
}

template <typename T>
struct RouterPart {
  const T* d_logits;  // [T, E]
  const T* router;    // [E, D]
  int64_t d_logits_stride, router_stride;
  int num_experts;
};

constexpr int kTokensOfWarp = 4;

// A warp four neighbouring tokens, eight columns a lane: the router's weights, which stay in the
// L1 cache, are read once for all of them, and a row of each is on its way at once.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    CombineWithRouter(const __grid_constant__ Combining c,
                      const __grid_constant__ RouterPart<T> part, const T* rows, T* y) {
  constexpr int kTokens = kTokensOfWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t first = warp * kTokens;
  // A token beyond the last is worked out as the last one is and not kept.
  const auto token = [&](int n) { return min(first + n, c.tokens - 1); };
  for (int at = threadIdx.x % 32 * 8; at < c.width; at += 32 * 8) {
    float sum[kTokens][8] = {};
    for (int i = 0; i < c.k; ++i) {
      float v[kTokens][8] = {};
#pragma unroll
      for (int n = 0; n < kTokens; ++n) {
        const int64_t row = c.row[token(n) * c.k + i];
        if (row >= 0) Load8(rows + row * c.rows_stride + at, v[n]);
      }
#pragma unroll
      for (int n = 0; n < kTokens; ++n) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[n][j] += v[n][j];
      }
    }
    for (int e = 0; e < part.num_experts; ++e) {
      float w[8];
      Load8(part.router + e * part.router_stride + at, w);
#pragma unroll
      for (int n = 0; n < kTokens; ++n) {
        const float d = Load(part.d_logits + token(n) * part.d_logits_stride + e);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[n][j] = fmaf(d, w[j], sum[n][j]);
      }
    }
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
      if (first + n < c.tokens) Store8(y + (first + n) * c.y_stride + at, sum[n]);
    }
  }
}

}  // namespace

void GatherRows(Queue& queue, const TrainDispatch& d, const Tensor& x, bool weighted,
                const Tensor& out) {
  Check(x.dtype == out.dtype, "GatherRows: the element types differ");
  if (out.dim(0) == 0) return;
  const Gathering g{.token = d.token.As<const int32_t, 1>().data,
                    .weight = weighted ? d.weight.As<const float, 1>().data : nullptr,
                    .rows = out.dim(0),
                    .width = static_cast<int>(out.dim(1)),
                    .x_stride = x.stride[0],
                    .out_stride = out.stride[0]};
  WithElement(x, [&]<typename T>() {
    const bool wide = g.width % 8 == 0 && HasAlignedRows(x) && HasAlignedRows(out);
    const auto gather = wide ? Gather<8, T> : Gather<1, T>;
    gather<<<Blocks(g.rows, kWarps * kGatheredRows), kThreads, 0, queue.stream()>>>(
        g, x.As<const T, 2>().data, out.As<T, 2>().data);
  });
  CheckLaunch();
}

void CombineRows(Queue& queue, const TrainDispatch& d, const Tensor& rows, bool weighted,
                 const Tensor& y) {
  if (y.dim(0) == 0) return;
  const Combining c{.row = d.row.As<const int32_t, 2>().data,
                    .share = weighted ? d.share.As<const float, 2>().data : nullptr,
                    .tokens = y.dim(0),
                    .k = static_cast<int>(d.row.dim(1)),
                    .width = static_cast<int>(y.dim(1)),
                    .rows_stride = rows.stride[0],
                    .y_stride = y.stride[0]};
  WithElement(y, [&]<typename T>() {
    const bool wide = c.width % 8 == 0 && HasAlignedRows(rows) && HasAlignedRows(y);
    const auto combine = wide ? Combine<8, T> : Combine<1, T>;
    combine<<<Blocks(c.tokens, kWarps), kThreads, 0, queue.stream()>>>(
        c, rows.As<const T, 2>().data, y.As<T, 2>().data);
  });
  CheckLaunch();
}

void CombineAddNorm(Queue& queue, const TrainDispatch& d, const Tensor& rows,
                    const AddNormArgs& a) {
  constexpr int64_t kMostWidth = 256;
  const auto fits = [&](const Tensor& t) {
    return t.rank == 2 && t.dtype == rows.dtype && t.shape == a.x.shape && t.stride[1] == 1 &&
           HasAlignedRows(t);
  };
  const int64_t tokens = a.x.dim(0), width = a.x.dim(1);
  if (width > kMostWidth || width % 8 != 0 || !HasAlignedRows(rows) || !HasAlignedRows(a.weight) ||
      !fits(a.x) || !fits(a.out) || !(a.sum.empty() || fits(a.sum))) {
    cuda::CombineRows(queue, d, rows, true, a.branch);
    return cuda::AddNorm(queue, a);
  }
  if (tokens == 0 || width == 0) return;
  const auto weight = a.weight.As<const float, 1>();
  Check(weight.dim(0) == width, "CombineAddNorm: shapes disagree");
  const Combining c{.row = d.row.As<const int32_t, 2>().data,
                    .share = d.share.As<const float, 2>().data,
                    .tokens = tokens,
                    .k = static_cast<int>(d.row.dim(1)),
                    .width = static_cast<int>(width),
                    .rows_stride = rows.stride[0],
                    .y_stride = 0};
  WithElement(rows, [&]<typename T>() {
    const NormPart<T> part{.x = static_cast<const T*>(a.x.data),
                           .sum = static_cast<T*>(a.sum.data),
                           .out = static_cast<T*>(a.out.data),
                           .weight = weight.data,
                           .x_stride = a.x.stride[0],
                           .sum_stride = a.sum.stride[0],
                           .out_stride = a.out.stride[0],
                           .alpha = a.alpha,
                           .beta = a.beta,
                           .eps = a.eps};
    CombineNorm<T><<<Blocks(tokens, kWarps), kThreads, 0, queue.stream()>>>(
        c, part, rows.As<const T, 2>().data);
  });
  CheckLaunch();
}

void CombineGradients(Queue& queue, const TrainDispatch& d, const CombineGradientsArgs& a) {
  constexpr int64_t kMostRouterBytes = 16 << 10;  // well within the L1 cache
  constexpr int kTokens = kWarps * kTokensOfWarp;
  const DType type = a.d_x.dtype;
  Check(a.rows.dtype == type && a.d_logits.dtype == type && a.router.dtype == type,
        "CombineGradients: the element types differ");
  if (a.d_x.dim(0) == 0) return;
  const bool wide = a.d_x.dim(1) % 8 == 0 && HasAlignedRows(a.rows) && HasAlignedRows(a.router) &&
                    HasAlignedRows(a.d_x);
  if (!wide || a.router.size() * SizeOf(type) > kMostRouterBytes) {
    cuda::CombineRows(queue, d, a.rows, false, a.d_x);
    return cuda::MatMul(queue, {.a = a.d_logits, .b = a.router, .c = a.d_x, .add = true});
  }
  const Combining c{.row = d.row.As<const int32_t, 2>().data,
                    .share = nullptr,
                    .tokens = a.d_x.dim(0),
                    .k = static_cast<int>(d.row.dim(1)),
                    .width = static_cast<int>(a.d_x.dim(1)),
                    .rows_stride = a.rows.stride[0],
                    .y_stride = a.d_x.stride[0]};
  WithElement(a.d_x, [&]<typename T>() {
    const RouterPart<T> part{.d_logits = a.d_logits.As<const T, 2>().data,
                             .router = a.router.As<const T, 2>().data,
                             .d_logits_stride = a.d_logits.stride[0],
                             .router_stride = a.router.stride[0],
                             .num_experts = static_cast<int>(a.router.dim(0))};
    CombineWithRouter<T><<<Blocks(c.tokens, kTokens), kThreads, 0, queue.stream()>>>(
        c, part, a.rows.As<const T, 2>().data, a.d_x.As<T, 2>().data);
  });
  CheckLaunch();
}

}  // namespace mm01::cuda
