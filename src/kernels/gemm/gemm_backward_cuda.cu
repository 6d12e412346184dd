#include "kernels/gemm/gemm_backward_cuda.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/activation/activation_backward_cuda.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/grouped_gradient.h"
#include "kernels/gemm/gemm_backward_narrow.cuh"

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

bool IsNarrow(const MatMulArgs& p, const Sizes& s) {
  constexpr int64_t kMostColumns = 256;
  return p.a.dtype == DType::kBF16 && p.b.dtype == DType::kF32 && p.c.dtype == DType::kF32 &&
         !p.transpose_a && p.transpose_b && s.n <= kMostColumns && s.k % 8 == 0 &&
         s.k < int64_t{1} << 30 && HasAlignedRows(p.a) && HasAlignedRows(p.b);
}

void LaunchNarrow(Queue& queue, const MatMulArgs& args, const Sizes& s) {
  const Narrow p{.a = static_cast<const bf16*>(args.a.data),
                 .b = static_cast<const float*>(args.b.data),
                 .c = static_cast<float*>(args.c.data),
                 .lda = args.a.stride[0],
                 .ldb = args.b.stride[0],
                 .ldc = args.c.stride[0],
                 .m = s.m,
                 .n = static_cast<int>(s.n),
                 .k = static_cast<int>(s.k),
                 .add = args.add};
  const bool is_short = s.k <= kNarrowDepth;
  const int threads = is_short ? kShortThreads : kNarrowThreads;
  const int64_t block_rows = threads / 32 * kNarrowRows;
  int64_t blocks = (s.m + block_rows - 1) / block_rows;
  if (is_short) blocks = std::min<int64_t>(blocks, Multiprocessors());
  const dim3 grid(static_cast<unsigned>(blocks),
                  static_cast<unsigned>((s.n + kNarrowColumns - 1) / kNarrowColumns));
  (is_short ? NarrowShortRows : NarrowRows)<<<grid, threads, 0, queue.stream()>>>(p);
  CheckLaunch();
}

// Bytes from one tensor's first element to another's.
int64_t Distance(const Tensor& from, const Tensor& to) {
  return static_cast<const std::byte*>(to.data) - static_cast<const std::byte*>(from.data);
}

// Problems as one product of sorted rows with the matrices of their experts.
struct GroupedProduct {
  GroupedGemmArgs args;
  std::vector<RowGroup> groups;
};

// All but the rows of a and of c, which differ, is as in the first problem.
bool IsAlike(const MatMulArgs& p, const MatMulArgs& first) {
  return !p.transpose_a && !p.add && p.transpose_b == first.transpose_b &&
         p.a.dtype == DType::kBF16 && p.b.dtype == DType::kBF16 && p.c.dtype == DType::kBF16 &&
         p.a.stride == first.a.stride && p.c.stride == first.c.stride &&
         p.b.shape == first.b.shape && p.b.stride == first.b.stride;
}

bool TakesGrouped(const MatMulArgs& p, const Sizes& s) {
  const int64_t k_multiple = p.transpose_b ? 8 : 64;
  return s.n > 0 && s.k > 0 && s.n % 8 == 0 && s.k % k_multiple == 0 &&
         p.b.stride[0] == p.b.dim(1) && HasAlignedRows(p.a) && HasAlignedRows(p.b) &&
         HasAlignedRows(p.c);
}

// Nothing where the problems are none: rows of a and of c must follow each other, and the b, all of
// one shape, lie equally far apart.
std::optional<GroupedProduct> AsGrouped(std::span<const MatMulArgs> problems) {
  if (problems.size() < 2) return std::nullopt;
  const MatMulArgs& first = problems[0];
  const Tensor &a = first.a, &b = first.b, &c = first.c;
  const auto count = static_cast<int64_t>(problems.size());
  const Sizes sizes = CheckShapes(first);
  if (!TakesGrouped(first, sizes)) return std::nullopt;
  const int64_t row_bytes = b.dim(1) * SizeOf(b.dtype), distance = Distance(b, problems[1].b);
  if (distance % row_bytes != 0 || distance < row_bytes * b.dim(0) ||
      distance / row_bytes * count >= int64_t{1} << 31) {
    return std::nullopt;
  }
  GroupedProduct product;
  int64_t rows = 0;
  for (int64_t e = 0; e < count; ++e) {
    const MatMulArgs& p = problems[static_cast<size_t>(e)];
    const int64_t m = CheckShapes(p).m;
    const bool follows = Distance(a, p.a) == rows * a.stride[0] * SizeOf(a.dtype) &&
                         Distance(c, p.c) == rows * c.stride[0] * SizeOf(c.dtype);
    if (!IsAlike(p, first) || (m > 0 && !follows) || Distance(b, p.b) != e * distance) {
      return std::nullopt;
    }
    for (int64_t at = 0; at < m; at += kMaxGroupRows) {
      product.groups.push_back({.expert = static_cast<int32_t>(e),
                                .rows = static_cast<int32_t>(std::min(kMaxGroupRows, m - at)),
                                .first = rows + at});
    }
    rows += m;
  }
  product.args = {.x = a.data,
                  .x_stride = a.stride[0],
                  .num_rows = rows,
                  .w = b.data,
                  .num_experts = count,
                  .expert_rows = distance / row_bytes,
                  .transposed = !first.transpose_b,
                  .n = sizes.n,
                  .k = sizes.k,
                  .out = c.data,
                  .out_stride = c.stride[0]};
  return product;
}

// Makes of the product of rows with [2 F, k] one that keeps its sums and gives SwiGLU of them;
// false where `swiglu` is not of that product, gate beside up, or the kernel does not take it.
bool KeepForSwiGlu(const SwiGluForwardArgs& swiglu, GroupedGemmArgs& args) {
  const Tensor &gate = swiglu.gate, &up = swiglu.up, &out = swiglu.out;
  const int64_t ffn = args.n / 2, element = SizeOf(DType::kBF16);
  const auto fits = [&](const Tensor& t) {
    return t.rank == 2 && t.dtype == DType::kBF16 && t.dim(0) == args.num_rows && t.dim(1) == ffn &&
           HasAlignedRows(t);
  };
  if (args.transposed || args.n % 16 != 0 || args.expert_rows % 8 != 0 || !fits(gate) ||
      !fits(up) || !fits(out) || gate.data != args.out || gate.stride[0] != args.out_stride ||
      up.stride[0] != args.out_stride || Distance(gate, up) != ffn * element) {
    return false;
  }
  args.w_up = static_cast<const bf16*>(args.w) + ffn * args.k;
  args.n = ffn;
  args.products = static_cast<bf16*>(args.out);
  args.products_stride = args.out_stride;
  args.out = out.data;
  args.out_stride = out.stride[0];
  return true;
}

void Multiply(Queue& queue, const GroupedProduct& product) {
  if (product.groups.empty()) return;
  // The number of groups goes ahead of them, so that one copy does.
  std::vector<RowGroup> table = {{.expert = static_cast<int32_t>(product.groups.size())}};
  table.insert(table.end(), product.groups.begin(), product.groups.end());
  Scratch scratch(queue);
  auto* const there = scratch.Get<RowGroup>(std::ssize(table));
  queue.CopyToDevice(there, table.data(),
                     std::ssize(table) * static_cast<int64_t>(sizeof(RowGroup)));
  GroupedGemmArgs args = product.args;
  args.groups = there + 1;
  args.num_groups = &there->expert;
  GroupedGemm(queue, args);
}

// Does one pass of the kernel give the product, x w^T, and SiLU of its first columns?
bool TakesSilu(const MatMulArgs& p, const Sizes& s, const SiluForwardArgs& silu) {
  constexpr int64_t kMostK = 1024;
  const auto fits = [&](const Tensor& t) {
    return t.rank == 2 && t.dtype == DType::kBF16 && t.dim(0) == s.m && t.dim(1) % 8 == 0 &&
           t.dim(1) == silu.x.dim(1) && HasAlignedRows(t);
  };
  return IsAlike(p, p) && p.transpose_b && s.k <= kMostK && TakesGrouped(p, s) && fits(silu.x) &&
         fits(silu.out) && silu.x.dim(1) <= s.n && silu.x.data == p.c.data &&
         silu.x.stride[0] == p.c.stride[0];
}

bool IsGradient(const MatMulArgs& p) {
  return p.transpose_a && !p.transpose_b && p.add && p.a.dtype == DType::kBF16 &&
         p.b.dtype == DType::kBF16 && p.c.dtype == DType::kF32 && HasAlignedRows(p.a) &&
         HasAlignedRows(p.b) && HasAlignedRows(p.c);
}

// Nothing where the problems are no gradients of small matrices of one shape, of rows that follow
// each other. Matrices that have tiles for an eighth of the multiprocessors go one by one.
std::optional<GroupedGradientArgs> AsGroupedGradient(std::span<const MatMulArgs> problems) {
  if (problems.size() < 2 || problems.size() > kMaxGradientExperts) return std::nullopt;
  const MatMulArgs& first = problems[0];
  const Sizes sizes = CheckShapes(first);
  if (sizes.m == 0 || sizes.n == 0 || sizes.m % 8 != 0 || sizes.n % 8 != 0 ||
      8 * GradientTiles(sizes.m, sizes.n) > Multiprocessors()) {
    return std::nullopt;
  }
  GroupedGradientArgs args{.a = first.a.data,
                           .a_stride = first.a.stride[0],
                           .b = first.b.data,
                           .b_stride = first.b.stride[0],
                           .m = sizes.m,
                           .n = sizes.n,
                           .offset = {0},
                           .c = {},
                           .c_stride = first.c.stride[0]};
  for (const MatMulArgs& p : problems) {
    const Sizes s = CheckShapes(p);
    const int64_t rows = args.offset.back(), element = SizeOf(DType::kBF16);
    const bool follows = Distance(first.a, p.a) == rows * args.a_stride * element &&
                         Distance(first.b, p.b) == rows * args.b_stride * element;
    if (!IsGradient(p) || s.m != sizes.m || s.n != sizes.n || p.a.stride != first.a.stride ||
        p.b.stride != first.b.stride || p.c.stride != first.c.stride || (s.k > 0 && !follows)) {
      return std::nullopt;
    }
    args.offset.push_back(rows + s.k);
    args.c.push_back(static_cast<float*>(p.c.data));
  }
  return args;
}

}  // namespace

void MatMul(Queue& queue, const MatMulArgs& p) {
  const Sizes s = CheckShapes(p);
  if (s.m == 0 || s.n == 0 || (s.k == 0 && p.add)) return;
  if (s.k > 0 && ByLibrary(queue, p, s)) return;
  if (IsNarrow(p, s)) return LaunchNarrow(queue, p, s);
  WithElement(p.a, [&]<typename A>() {
    WithElement(p.b, [&]<typename B>() { LaunchPlain<A, B>(queue, p, s); });
  });
}

void MatMulMany(Queue& queue, std::span<const MatMulArgs> problems) {
  if (const auto product = AsGrouped(problems)) return Multiply(queue, *product);
  if (const auto gradients = AsGroupedGradient(problems)) return GroupedGradient(queue, *gradients);
  for (const MatMulArgs& p : problems) cuda::MatMul(queue, p);
}

void MatMulSilu(Queue& queue, const MatMulArgs& p, const SiluForwardArgs& silu) {
  const Sizes s = CheckShapes(p);
  if (!TakesSilu(p, s, silu)) {
    cuda::MatMul(queue, p);
    return cuda::SiluOf(queue, silu);
  }
  GroupedGemm(queue, {.x = p.a.data,
                      .x_stride = p.a.stride[0],
                      .num_rows = s.m,
                      .w = p.b.data,
                      .n = s.n,
                      .k = s.k,
                      .out = p.c.data,
                      .out_stride = p.c.stride[0],
                      .silu_out = static_cast<bf16*>(silu.out.data),
                      .silu_stride = silu.out.stride[0],
                      .silu_columns = silu.out.dim(1)});
}

void MatMulManySwiGlu(Queue& queue, std::span<const MatMulArgs> problems,
                      const SwiGluForwardArgs& swiglu) {
  if (auto product = AsGrouped(problems); product && KeepForSwiGlu(swiglu, product->args)) {
    return Multiply(queue, *product);
  }
  cuda::MatMulMany(queue, problems);
  cuda::SwiGluOf(queue, swiglu);
}

}  // namespace mm01::cuda
