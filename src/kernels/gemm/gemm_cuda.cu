// Which kernel takes a product depends on its types, shapes and alignment; of M only on whether
// there are few rows.
//
//   x bf16, w bf16 or int8   few rows: stream.cuh; many: cuBLASLt, int8 decoded a piece at a time
//   x float32, w float32     few rows: a warp an output; many: cuBLASLt
//   all else                 few rows: a warp an output; many: tiles of 64 x 64
#include <algorithm>
#include <type_traits>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/activation/activation_cuda.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/gemm/gemm_cuda.h"
#include "kernels/gemm/stream.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;

// A product of any shape, and its weight decoded element by element.
template <typename X, typename W>
struct Plain {
  const X* x;
  int64_t ldx;
  const W* w;
  const bf16* scales;
  int group;
  int64_t num_groups;
  void* out;
  int64_t ldo;
  int64_t m, n, k;
  bool bf16_out, silu;

  __device__ float Weight(int64_t row, int64_t input) const {
    if constexpr (std::is_same_v<W, int8_t>) {
      return static_cast<float>(w[row * k + input]) *
             Load(scales + row * num_groups + input / group);
    } else {
      return Load(w + row * k + input);
    }
  }
  __device__ void Finish(int64_t row, int64_t token, float sum) const {
    if (silu) sum *= Sigmoid(sum);
    if (bf16_out) {
      Store(static_cast<bf16*>(out) + token * ldo + row, sum);
    } else {
      static_cast<float*>(out)[token * ldo + row] = sum;
    }
  }
};

// One warp a row of w and four of x: a lane adds every 32nd input, lanes are folded in halves.
constexpr int kDotTokens = 4;

template <typename X, typename W>
__global__ void __launch_bounds__(kThreads) Dot(const __grid_constant__ Plain<X, W> p) {
  AllowNextKernel();
  AwaitEarlierKernels();
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kDotTokens;
  if (row >= p.n) return;
  const X* x[kDotTokens];
#pragma unroll
  for (int i = 0; i < kDotTokens; ++i) x[i] = p.x + min(first + i, p.m - 1) * p.ldx;
  float sum[kDotTokens] = {};
#pragma unroll 4
  for (int64_t input = lane; input < p.k; input += 32) {
    const float w = p.Weight(row, input);
#pragma unroll
    for (int i = 0; i < kDotTokens; ++i) sum[i] = fmaf(w, Load(x[i] + input), sum[i]);
  }
#pragma unroll
  for (int i = 0; i < kDotTokens; ++i) {
    for (int step = 16; step > 0; step /= 2) {
      sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], step);
    }
    if (lane == 0 && first + i < p.m) p.Finish(row, first + i, sum[i]);
  }
}

// One block 64 x 64 outputs, one thread 4 x 4; inputs in order, one chain an output.
constexpr int kTile = 64, kTileDepth = 16;

template <typename X, typename W>
__global__ void __launch_bounds__(kThreads) Tile(const __grid_constant__ Plain<X, W> p) {
  __shared__ float xs[kTileDepth][kTile + 4], ws[kTileDepth][kTile + 4];
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTile;
  float sum[4][4] = {};
  for (int64_t first = 0; first < p.k; first += kTileDepth) {
#pragma unroll
    for (int at = threadIdx.x; at < kTile * kTileDepth; at += kThreads) {
      const int input = at % kTileDepth, i = at / kTileDepth;
      const bool inside = first + input < p.k;
      const int64_t token = first_token + i, row = first_row + i;
      xs[input][i] = inside && token < p.m ? Load(p.x + token * p.ldx + first + input) : 0.0f;
      ws[input][i] = inside && row < p.n ? p.Weight(row, first + input) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int input = 0; input < kTileDepth; ++input) {
      const float4 a = *reinterpret_cast<const float4*>(&xs[input][4 * ty]);
      const float4 b = *reinterpret_cast<const float4*>(&ws[input][4 * tx]);
      const float x[4] = {a.x, a.y, a.z, a.w}, w[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(x[i], w[j], sum[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t token = first_token + 4 * ty + i, row = first_row + 4 * tx + j;
      if (token < p.m && row < p.n) p.Finish(row, token, sum[i][j]);
    }
  }
}

// Eight int8 weights a thread, rounded to bf16.
__global__ void __launch_bounds__(kThreads)
    Decode(const int8_t* q, const bf16* scales, int group, int64_t num_groups, int64_t k,
           int64_t pieces, bf16* out) {
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (piece >= pieces) return;
  const int64_t per_row = k / 8, row = piece / per_row, input = piece % per_row * 8;
  const uint2 bytes = *reinterpret_cast<const uint2*>(q + row * k + input);
  const float scale = Load(scales + row * num_groups + input / group);
  float x[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t word = i < 4 ? bytes.x : bytes.y;
    x[i] = static_cast<float>(static_cast<int8_t>(word >> (i % 4 * 8))) * scale;
  }
  Store8(out + row * k + input, x);
}

void CheckShapes(const GemmArgs& a) {
  const DType x = a.x.dtype, out = a.out.dtype;
  Check(a.x.rank == 2 && a.out.rank == 2 && a.x.stride[1] == 1 && a.out.stride[1] == 1,
        "Gemm: x and out are matrices whose last dim is contiguous");
  Check((x == DType::kF32 || x == DType::kBF16) && (out == DType::kF32 || out == DType::kBF16),
        "Gemm: x and out are float32 or bf16");
  Check(a.x.dim(1) == a.w->k() && a.out.dim(0) == a.x.dim(0) && a.out.dim(1) == a.w->n(),
        "Gemm: x [M, K], w [N, K] and out [M, N] disagree");
  Check(a.w->device() == Device::kCuda, "Gemm: the weight is not on the GPU");
}

bool Streams(const GemmArgs& a) {
  return a.x.dim(0) <= kFewRows && a.x.dtype == DType::kBF16 && a.w->type().dtype != DType::kF32 &&
         a.w->k() % 8 == 0 && HasAlignedRows(a.x);
}

bool SharesX(const GemmArgs& a, const GemmArgs& b) {
  return a.x.data == b.x.data && a.x.stride[0] == b.x.stride[0] && a.x.shape == b.x.shape &&
         a.w->type() == b.w->type();
}

void Stream(Queue& queue, std::span<const GemmArgs> problems) {
  const GemmArgs& first = problems[0];
  StreamArgs s{.x = static_cast<const bf16*>(first.x.data),
               .ldx = first.x.stride[0],
               .m = static_cast<int>(first.x.dim(0)),
               .k = static_cast<int>(first.w->k()),
               .group = static_cast<int>(first.w->type().group),
               .num_groups = static_cast<int>(first.w->num_groups()),
               .num_products = static_cast<int>(problems.size()),
               .product = {}};
  for (size_t i = 0; i < problems.size(); ++i) {
    const GemmArgs& a = problems[i];
    s.product[i] = {.w = a.w->data(),
                    .scales = a.w->scales(),
                    .out = a.out.data,
                    .ldo = a.out.stride[0],
                    .n = static_cast<int>(a.w->n()),
                    .first_block = 0,
                    .bf16_out = a.out.dtype == DType::kBF16,
                    .silu = a.activation == Activation::kSilu};
  }
  StreamGemm(queue, s);
}

template <typename X, typename W>
void LaunchPlain(Queue& queue, const GemmArgs& a) {
  const Plain<X, W> p{.x = static_cast<const X*>(a.x.data),
                      .ldx = a.x.stride[0],
                      .w = static_cast<const W*>(a.w->data()),
                      .scales = a.w->scales(),
                      .group = static_cast<int>(a.w->type().group),
                      .num_groups = a.w->num_groups(),
                      .out = a.out.data,
                      .ldo = a.out.stride[0],
                      .m = a.x.dim(0),
                      .n = a.w->n(),
                      .k = a.w->k(),
                      .bf16_out = a.out.dtype == DType::kBF16,
                      .silu = a.activation == Activation::kSilu};
  const auto blocks = [](int64_t n, int64_t size) {
    return static_cast<unsigned>((n + size - 1) / size);
  };
  if (p.m <= kFewRows) {
    LaunchOverlapped(queue, Dot<X, W>, dim3(blocks(p.n, kThreads / 32), blocks(p.m, kDotTokens)),
                     kThreads, 0, p);
    return;
  }
  // The second dim of a grid ends at 65,535.
  constexpr int64_t kMostTokens = int64_t{65535} * kTile;
  for (int64_t token = 0; token < p.m; token += kMostTokens) {
    Plain<X, W> part = p;
    part.m = std::min(kMostTokens, p.m - token);
    part.x += token * p.ldx;
    part.out = static_cast<std::byte*>(p.out) + token * p.ldo * SizeOf(a.out.dtype);
    Tile<X, W>
        <<<dim3(blocks(p.n, kTile), blocks(part.m, kTile)), kThreads, 0, queue.stream()>>>(part);
    CheckLaunch();
  }
}

void MultiplyPlain(Queue& queue, const GemmArgs& a) {
  WithElement(a.x, [&]<typename X>() {
    switch (a.w->type().dtype) {
      case DType::kF32:
        return LaunchPlain<X, float>(queue, a);
      case DType::kBF16:
        return LaunchPlain<X, bf16>(queue, a);
      default:
        return LaunchPlain<X, int8_t>(queue, a);
    }
  });
}

// Rows first .. first + n - 1 of w, given as a matrix of x's type.
bool MultiplyRows(Queue& queue, const GemmArgs& a, const void* w, int64_t first, int64_t n) {
  return MultiplyByLibrary(
      queue, {.x = a.x.data,
              .ldx = a.x.stride[0],
              .w = w,
              .ldw = a.w->k(),
              .out = static_cast<std::byte*>(a.out.data) + first * SizeOf(a.out.dtype),
              .ldo = a.out.stride[0],
              .m = a.x.dim(0),
              .n = n,
              .k = a.w->k(),
              .in_type = a.x.dtype,
              .out_type = a.out.dtype});
}

bool DecodeAndMultiply(Queue& queue, const GemmArgs& a) {
  constexpr int64_t kMostBytes = int64_t{64} << 20;  // about what the second-level cache holds
  const int64_t k = a.w->k(), n = a.w->n(), groups = a.w->num_groups();
  const int64_t most = std::max<int64_t>(256, kMostBytes / (2 * k) / 256 * 256);
  Scratch scratch(queue);
  bf16* decoded = scratch.Get<bf16>(std::min(most, n) * k);
  for (int64_t first = 0; first < n; first += most) {
    const int64_t rows = std::min(most, n - first), pieces = rows * (k / 8);
    Decode<<<static_cast<unsigned>((pieces + kThreads - 1) / kThreads), kThreads, 0,
             queue.stream()>>>(static_cast<const int8_t*>(a.w->data()) + first * k,
                               a.w->scales() + first * groups, static_cast<int>(a.w->type().group),
                               groups, k, pieces, decoded);
    CheckLaunch();
    if (!MultiplyRows(queue, a, decoded, first, rows)) return false;
  }
  return true;
}

// False where the library does not take the product; what it has written then is written again.
bool MultiplyMany(Queue& queue, const GemmArgs& a) {
  const int64_t whole = 16 / SizeOf(a.x.dtype);  // elements in 16 bytes
  if (!HasAlignedRows(a.x) || !HasAlignedRows(a.out) || a.w->k() % whole || a.w->n() % 8) {
    return false;
  }
  const DType w = a.w->type().dtype;
  if (a.x.dtype == DType::kBF16 && w == DType::kI8) return DecodeAndMultiply(queue, a);
  if (a.x.dtype != w || (w == DType::kF32 && a.out.dtype != DType::kF32)) return false;
  return MultiplyRows(queue, a, a.w->data(), 0, a.w->n());
}

}  // namespace

void GemmMany(Queue& queue, std::span<const GemmArgs> problems) {
  for (const GemmArgs& a : problems) CheckShapes(a);
  for (size_t i = 0; i < problems.size();) {
    const GemmArgs& a = problems[i];
    size_t end = i + 1;
    if (a.x.dim(0) == 0) {
      // No rows are no work.
    } else if (Streams(a)) {
      while (end < problems.size() && end - i < kMostStreamProducts && SharesX(a, problems[end])) {
        ++end;
      }
      Stream(queue, problems.subspan(i, end - i));
    } else if (a.x.dim(0) > kFewRows && MultiplyMany(queue, a)) {
      if (a.activation == Activation::kSilu) cuda::Silu(queue, a.out);
    } else {
      MultiplyPlain(queue, a);
    }
    i = end;
  }
}

void Gemm(Queue& queue, const GemmArgs& args) {
  cuda::GemmMany(queue, {&args, 1});
}

}  // namespace mm01::cuda
