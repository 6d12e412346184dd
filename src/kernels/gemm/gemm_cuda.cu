// Which kernel takes a product depends on its types, shapes and alignment; of M only on the range
// (gemm.h) that it is in.
//
//   x bf16, w bf16 or int8   few rows: stream.cuh; many: cuBLASLt, int8 decoded a piece at a time
//   x float32, w float32     few rows: a warp an output; many: cuBLASLt
//   all else                 few rows: a warp an output; many: tiles of 64 x 64
#include <algorithm>
#include <bit>
#include <type_traits>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/activation/activation_cuda.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/decode_int8.cuh"
#include "kernels/cuda/dense_gemm.h"
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
  AwaitEarlierKernels();
  AllowNextKernel();
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

// int8 rows as bf16, each rounded once: the product of a number and its scale is one of bf16
// numbers. A warp a row, a lane 16 weights at a time.
__global__ void __launch_bounds__(kThreads)
    Decode(const int8_t* q, const bf16* scales, int log_group, int num_groups, int n, int k,
           bf16* out) {
  const int row = static_cast<int>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= n) return;
  const int64_t first = static_cast<int64_t>(row) * k;
  const bf16* const scale = scales + static_cast<int64_t>(row) * num_groups;
#pragma unroll 4
  for (int input = threadIdx.x % 32 * 16; input < k; input += 32 * 16) {
    const uint4 bytes = __ldcs(reinterpret_cast<const uint4*>(q + first + input));
    const uint32_t by = scale[input >> log_group].bits * 0x00010001u;
    uint4* const to = reinterpret_cast<uint4*>(out + first + input);
    to[0] = make_uint4(ScaleInt8<0>(bytes.x, by), ScaleInt8<1>(bytes.x, by),
                       ScaleInt8<0>(bytes.y, by), ScaleInt8<1>(bytes.y, by));
    to[1] = make_uint4(ScaleInt8<0>(bytes.z, by), ScaleInt8<1>(bytes.z, by),
                       ScaleInt8<0>(bytes.w, by), ScaleInt8<1>(bytes.w, by));
  }
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
  const DType w = a.w->type().dtype;
  const int64_t whole = w == DType::kI8 ? 16 : 8;
  return a.x.dim(0) <= kFewRows && a.x.dtype == DType::kBF16 && w != DType::kF32 &&
         a.w->k() % whole == 0 && a.w->k() <= kMostStreamInputs && HasAlignedRows(a.x);
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
                    .first_tile = 0,
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

// Rows first .. first + n - 1 of w, given as a matrix of bf16, and SiLU of the sums: our own
// product has such an end, cuBLASLt none.
void MultiplyRowsSilu(Queue& queue, const GemmArgs& a, const void* w, int64_t first, int64_t n) {
  Tensor out(a.out.dtype, static_cast<std::byte*>(a.out.data) + first * SizeOf(a.out.dtype),
             {a.out.dim(0), n});
  out.stride[0] = a.out.stride[0];
  const Tensor rows(DType::kBF16, const_cast<void*>(w), {n, a.w->k()});
  DenseGemm(queue, {.x = a.x, .w = rows, .out = out, .activation = Activation::kSilu});
}

// Pieces are large, so that what the library leaves idle at a product's end counts for little.
bool DecodeAndMultiply(Queue& queue, const GemmArgs& a) {
  constexpr int64_t kMostBytes = int64_t{160} << 20;
  constexpr int64_t kWhole = 256;  // rows
  const int64_t k = a.w->k(), n = a.w->n(), groups = a.w->num_groups();
  const int64_t pieces = (2 * n * k + kMostBytes - 1) / kMostBytes;
  const int64_t most = ((n + pieces - 1) / pieces + kWhole - 1) / kWhole * kWhole;
  Scratch scratch(queue);
  bf16* decoded = scratch.Get<bf16>(std::min(most, n) * k);
  for (int64_t first = 0; first < n; first += most) {
    const int64_t rows = std::min(most, n - first);
    constexpr int64_t kRows = kThreads / 32;
    Decode<<<static_cast<unsigned>((rows + kRows - 1) / kRows), kThreads, 0, queue.stream()>>>(
        static_cast<const int8_t*>(a.w->data()) + first * k, a.w->scales() + first * groups,
        std::countr_zero(static_cast<uint64_t>(a.w->type().group)), static_cast<int>(groups),
        static_cast<int>(rows), static_cast<int>(k), decoded);
    CheckLaunch();
    if (a.activation == Activation::kSilu) {
      MultiplyRowsSilu(queue, a, decoded, first, rows);
    } else if (!MultiplyRows(queue, a, decoded, first, rows)) {
      return false;
    }
  }
  return true;
}

// False where the library does not take the product; what it has written then is written again.
bool MultiplyMany(Queue& queue, const GemmArgs& a) {
  // Elements in 16 bytes.
  const int64_t whole = 16 / std::min(SizeOf(a.x.dtype), SizeOf(a.w->type().dtype));
  if (!HasAlignedRows(a.x) || !HasAlignedRows(a.out) || a.w->k() % whole || a.w->n() % 8) {
    return false;
  }
  const DType w = a.w->type().dtype;
  if (a.x.dtype == DType::kBF16 && w == DType::kI8) return DecodeAndMultiply(queue, a);
  if (a.x.dtype != w || (w == DType::kF32 && a.out.dtype != DType::kF32)) return false;
  const bool silu = a.activation == Activation::kSilu;
  if (silu && w == DType::kBF16) {
    MultiplyRowsSilu(queue, a, a.w->data(), 0, a.w->n());
    return true;
  }
  if (!MultiplyRows(queue, a, a.w->data(), 0, a.w->n())) return false;
  if (silu) cuda::Silu(queue, a.out);
  return true;
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
    } else if (a.x.dim(0) <= kFewRows || !MultiplyMany(queue, a)) {
      MultiplyPlain(queue, a);
    }
    i = end;
  }
}

void Gemm(Queue& queue, const GemmArgs& args) {
  cuda::GemmMany(queue, {&args, 1});
}

}  // namespace mm01::cuda
