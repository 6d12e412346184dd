#include "kernels/gemm/gemm_backward_cuda.h"

#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/elements.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;

template <typename A, typename B>
struct Plain {
  const A* a;
  const B* b;
  void* c;
  int64_t a_row, a_k;  // elements from row to row of a as it is multiplied, and along k
  int64_t b_k, b_column;
  int64_t ldc;
  int64_t m, n, k;
  bool bf16_out, add;

  __device__ void Finish(int64_t row, int64_t column, float sum) const {
    if (bf16_out) {
      bf16* const to = static_cast<bf16*>(c) + row * ldc + column;
      Store(to, add ? Load(to) + sum : sum);
    } else {
      float* const to = static_cast<float*>(c) + row * ldc + column;
      *to = add ? *to + sum : sum;
    }
  }
};

// One block 64 x 64 outputs, one thread 4 x 4.
constexpr int kTile = 64, kTileDepth = 16;

// Which row and place along k a thread fetches: neighbours in memory by neighbouring threads.
struct Place {
  int row, depth;
};
__device__ __forceinline__ Place PlaceOf(int at, bool k_is_fast) {
  return k_is_fast ? Place{at / kTileDepth, at % kTileDepth} : Place{at % kTile, at / kTile};
}

template <typename A, typename B>
__global__ void __launch_bounds__(kThreads) Tile(const __grid_constant__ Plain<A, B> p) {
  __shared__ float as[kTileDepth][kTile + 4], bs[kTileDepth][kTile + 4];
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kTile;
  float sum[4][4] = {};
  for (int64_t first = 0; first < p.k; first += kTileDepth) {
#pragma unroll
    for (int at = threadIdx.x; at < kTile * kTileDepth; at += kThreads) {
      const Place in_a = PlaceOf(at, p.a_k == 1), in_b = PlaceOf(at, p.b_k == 1);
      const int64_t row = first_row + in_a.row, a_k = first + in_a.depth;
      const int64_t column = first_column + in_b.row, b_k = first + in_b.depth;
      as[in_a.depth][in_a.row] =
          row < p.m && a_k < p.k ? Load(p.a + row * p.a_row + a_k * p.a_k) : 0.0f;
      bs[in_b.depth][in_b.row] =
          column < p.n && b_k < p.k ? Load(p.b + b_k * p.b_k + column * p.b_column) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int depth = 0; depth < kTileDepth; ++depth) {
      const float4 a = *reinterpret_cast<const float4*>(&as[depth][4 * ty]);
      const float4 b = *reinterpret_cast<const float4*>(&bs[depth][4 * tx]);
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
      const int64_t row = first_row + 4 * ty + i, column = first_column + 4 * tx + j;
      if (row < p.m && column < p.n) p.Finish(row, column, sum[i][j]);
    }
  }
}

struct Sizes {
  int64_t m, n, k;
};

Sizes CheckShapes(const MatMulArgs& p) {
  const auto is_activation = [](const Tensor& t) {
    return t.rank == 2 && t.stride[1] == 1 && (t.dtype == DType::kF32 || t.dtype == DType::kBF16);
  };
  Check(is_activation(p.a) && is_activation(p.b) && is_activation(p.c),
        "MatMul: a, b and c are matrices of float32 or bf16 whose last dim is contiguous");
  const Sizes s{p.c.dim(0), p.c.dim(1), p.a.dim(p.transpose_a ? 0 : 1)};
  Check(p.a.dim(p.transpose_a ? 1 : 0) == s.m && p.b.dim(p.transpose_b ? 0 : 1) == s.n &&
            p.b.dim(p.transpose_b ? 1 : 0) == s.k,
        "MatMul: a [M, k], b [k, N] and c [M, N] disagree");
  return s;
}

bool ByLibrary(Queue& queue, const MatMulArgs& p, const Sizes& s) {
  if (p.a.dtype != p.b.dtype || (p.a.dtype == DType::kF32 && p.c.dtype != DType::kF32) ||
      !HasAlignedRows(p.a) || !HasAlignedRows(p.b) || !HasAlignedRows(p.c)) {
    return false;
  }
  return MatMulByLibrary(queue, {.a = p.a.data,
                                 .lda = p.a.stride[0],
                                 .b = p.b.data,
                                 .ldb = p.b.stride[0],
                                 .c = p.c.data,
                                 .ldc = p.c.stride[0],
                                 .m = s.m,
                                 .n = s.n,
                                 .k = s.k,
                                 .in_type = p.a.dtype,
                                 .out_type = p.c.dtype,
                                 .transpose_a = p.transpose_a,
                                 .transpose_b = p.transpose_b,
                                 .add = p.add});
}

template <typename A, typename B>
void LaunchPlain(Queue& queue, const MatMulArgs& args, const Sizes& s) {
  const Plain<A, B> p{.a = static_cast<const A*>(args.a.data),
                      .b = static_cast<const B*>(args.b.data),
                      .c = args.c.data,
                      .a_row = args.transpose_a ? 1 : args.a.stride[0],
                      .a_k = args.transpose_a ? args.a.stride[0] : 1,
                      .b_k = args.transpose_b ? 1 : args.b.stride[0],
                      .b_column = args.transpose_b ? args.b.stride[0] : 1,
                      .ldc = args.c.stride[0],
                      .m = s.m,
                      .n = s.n,
                      .k = s.k,
                      .bf16_out = args.c.dtype == DType::kBF16,
                      .add = args.add};
  const auto blocks = [](int64_t n) { return static_cast<unsigned>((n + kTile - 1) / kTile); };
  Check(s.n <= int64_t{65535} * kTile, "MatMul: more columns than the grid has blocks for");
  Tile<A, B><<<dim3(blocks(s.m), blocks(s.n)), kThreads, 0, queue.stream()>>>(p);
  CheckLaunch();
}

}  // namespace

void MatMul(Queue& queue, const MatMulArgs& p) {
  const Sizes s = CheckShapes(p);
  if (s.m == 0 || s.n == 0 || (s.k == 0 && p.add)) return;
  if (s.k > 0 && ByLibrary(queue, p, s)) return;
  WithElement(p.a, [&]<typename A>() {
    WithElement(p.b, [&]<typename B>() { LaunchPlain<A, B>(queue, p, s); });
  });
}

void MatMulMany(Queue& queue, std::span<const MatMulArgs> problems) {
  for (const MatMulArgs& p : problems) cuda::MatMul(queue, p);
}

}  // namespace mm01::cuda
