// One block a row, or one warp where the row is 256 numbers or fewer: eight rows a block then,
// since blocks of one warp are too few at a time to keep the memory busy. In the mixes of types
// that the model has, rows of up to 16,384 numbers at multiples of 16 bytes stay in registers, 32
// or 16 numbers a thread, between the sum of squares and the norm. Everything else takes one slower
// kernel.
#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/any_rows.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/norm/norm_cuda.h"

namespace mm01::cuda {
namespace {

// Pieces of eight numbers a thread. The gate's arithmetic takes more threads.
constexpr int kPieces = 4, kGatedPieces = 2;
constexpr int64_t kMostInRegisters = 16384;
constexpr int kMostThreads = kMostInRegisters / kPieces / 8;
constexpr int kMostGatedThreads = kMostInRegisters / kGatedPieces / 8;
constexpr int64_t kMostWidth = 49152;
constexpr int kAnyThreads = 256;

// The sum over the block, for every thread: lanes in halves, then warps in order.
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ __forceinline__ float BlockSum(float x) {
  __shared__ float warps[kMostGatedThreads / 32];
  x = WarpSum(x);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = warps[0];
  for (unsigned w = 1; w < blockDim.x / 32; ++w) sum += warps[w];
  return sum;
}

__device__ __forceinline__ float InverseRoot(float squares, int64_t width, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(width) + eps);
}

// Which row a thread works on, and with how many others. kByWarp: a warp a row, a piece a lane.
template <bool kByWarp>
struct Place {
  int64_t row;
  int thread, threads;

  __device__ __forceinline__ Place()
      : row(kByWarp ? blockIdx.x * int64_t{blockDim.x / 32} + threadIdx.x / 32 : blockIdx.x),
        thread(kByWarp ? threadIdx.x % 32 : threadIdx.x),
        threads(kByWarp ? 32 : blockDim.x) {}
  __device__ __forceinline__ int Piece(int i) const { return thread + i * threads; }
  __device__ __forceinline__ static float Sum(float x) {
    return kByWarp ? WarpSum(x) : BlockSum(x);
  }
};
constexpr int kRowsByWarp = 8;  // of a block

template <typename X>
struct Matrix {
  X* data;
  int64_t stride;

  explicit Matrix(const Tensor& t) : data(static_cast<X*>(t.data)), stride(t.stride[0]) {}
  __device__ X* At(int64_t row, int piece) const { return data + row * stride + piece * 8; }
};

template <typename X, typename Out>
struct AddNormRows {
  Matrix<X> x;
  Matrix<Out> branch;
  AnyRows sum;
  Matrix<Out> out;
  const float* weight;
  float alpha, beta, eps;
  int pieces;  // D / 8
  int64_t rows;
  bool has_branch, writes_sum;
};

template <typename X, typename Out, bool kByWarp>
__global__ void __launch_bounds__(kMostThreads)
    AddNormKernel(const __grid_constant__ AddNormRows<X, Out> a) {
  constexpr int kMost = kByWarp ? 1 : kPieces;
  const Place<kByWarp> place;
  const int64_t row = place.row;
  float weight[kMost][8], sum[kMost][8];
  const auto piece = [&](int i) { return place.Piece(i); };
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (piece(i) < a.pieces) Load8(a.weight + piece(i) * 8, weight[i]);
  }
  AllowNextKernel();
  AwaitEarlierKernels();
  if (row >= a.rows) return;  // a warp's row: nobody waits for it
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (piece(i) < a.pieces) Load8(a.x.At(row, piece(i)), sum[i]);
  }
  if (a.has_branch) {
    float branch[kMost][8];
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (piece(i) < a.pieces) Load8(a.branch.At(row, piece(i)), branch[i]);
    }
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (piece(i) >= a.pieces) continue;
#pragma unroll
      for (int c = 0; c < 8; ++c) sum[i][c] = a.alpha * sum[i][c] + a.beta * branch[i][c];
    }
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (piece(i) >= a.pieces) continue;
    if (a.writes_sum) a.sum.Set8(row, piece(i) * 8, sum[i]);
#pragma unroll
    for (int c = 0; c < 8; ++c) squares = fmaf(sum[i][c], sum[i][c], squares);
  }
  const float scale = InverseRoot(place.Sum(squares), int64_t{a.pieces} * 8, a.eps);
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (piece(i) >= a.pieces) continue;
    float y[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) y[c] = sum[i][c] * scale * weight[i][c];
    Store8(a.out.At(row, piece(i)), y);
  }
}

struct AddNormAny {
  AnyRows x, branch, sum, out;
  const float* weight;
  float alpha, beta, eps;
  int64_t width;
  bool has_branch;
};

__global__ void __launch_bounds__(kAnyThreads)
    AddNormAnyKernel(const __grid_constant__ AddNormAny a) {
  extern __shared__ float kept[];
  const int64_t row = blockIdx.x;
  float squares = 0.0f;
  for (int64_t i = threadIdx.x; i < a.width; i += kAnyThreads) {
    float s = a.x.Get(row, i);
    if (a.has_branch) s = a.alpha * s + a.beta * a.branch.Get(row, i);
    kept[i] = s;
    a.sum.Set(row, i, s);
    squares = fmaf(s, s, squares);
  }
  const float scale = InverseRoot(BlockSum(squares), a.width, a.eps);
  for (int64_t i = threadIdx.x; i < a.width; i += kAnyThreads) {
    a.out.Set(row, i, kept[i] * scale * a.weight[i]);
  }
}

template <typename T>
struct GatedRows {
  Matrix<T> x, gate, out;
  const float* weight;
  const float* squares;  // null: from x
  float eps;
  int pieces;
  int64_t rows, width;
};

// Eight neighbours as they lie in memory: bf16 takes half the registers that way.
template <typename T>
struct Packed {
  static constexpr int kWords = 8 * sizeof(T) / sizeof(uint4);
  uint4 words[kWords];

  __device__ void Load(const T* p) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const uint4*>(p)[i];
  }
  __device__ void Unpack(float (&x)[8]) const {
    Load8(reinterpret_cast<const T*>(words), x);
  }
};

template <typename T, bool kByWarp>
__global__ void __launch_bounds__(kMostGatedThreads)
    GatedNormKernel(const __grid_constant__ GatedRows<T> a) {
  constexpr int kMost = kByWarp ? 1 : kGatedPieces;
  const Place<kByWarp> place;
  const int64_t row = place.row;
  const auto piece = [&](int i) { return place.Piece(i); };
  float weight[kMost][8];
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (piece(i) < a.pieces) Load8(a.weight + piece(i) * 8, weight[i]);
  }
  AllowNextKernel();
  AwaitEarlierKernels();
  if (row >= a.rows) return;  // a warp's row: nobody waits for it
  Packed<T> x[kMost], gate[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (piece(i) >= a.pieces) continue;
    x[i].Load(a.x.At(row, piece(i)));
    gate[i].Load(a.gate.At(row, piece(i)));
  }
  float squares = 0.0f;
  if (a.squares) {
    squares = a.squares[row];
  } else {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (piece(i) >= a.pieces) continue;
      float v[8];
      x[i].Unpack(v);
#pragma unroll
      for (int c = 0; c < 8; ++c) squares = fmaf(v[c], v[c], squares);
    }
    squares = place.Sum(squares);
  }
  const float scale = InverseRoot(squares, a.width, a.eps);
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (piece(i) >= a.pieces) continue;
    float v[8], g[8];
    x[i].Unpack(v);
    gate[i].Unpack(g);
#pragma unroll
    for (int c = 0; c < 8; ++c) v[c] = v[c] * scale * weight[i][c] * Sigmoid(g[c]);
    Store8(a.out.At(row, piece(i)), v);
  }
}

struct GatedAny {
  AnyRows x, gate, out;
  const float* weight;
  const float* squares;
  float eps;
  int64_t numbers, width;  // of x, of the whole row
};

// A thread writes only what it alone has read, so out may be x.
__global__ void __launch_bounds__(kAnyThreads)
    GatedNormAnyKernel(const __grid_constant__ GatedAny a) {
  const int64_t row = blockIdx.x;
  float squares = 0.0f;
  if (a.squares) {
    squares = a.squares[row];
  } else {
    for (int64_t i = threadIdx.x; i < a.numbers; i += kAnyThreads) {
      squares = fmaf(a.x.Get(row, i), a.x.Get(row, i), squares);
    }
    squares = BlockSum(squares);
  }
  const float scale = InverseRoot(squares, a.width, a.eps);
  for (int64_t i = threadIdx.x; i < a.numbers; i += kAnyThreads) {
    a.out.Set(row, i, a.x.Get(row, i) * scale * a.weight[i] * Sigmoid(a.gate.Get(row, i)));
  }
}

__global__ void __launch_bounds__(kAnyThreads)
    SquaresKernel(AnyRows x, int64_t width, bool aligned, float* out) {
  AllowNextKernel();
  AwaitEarlierKernels();
  const int64_t row = blockIdx.x;
  float squares = 0.0f;
  const int64_t whole = aligned ? width / 8 * 8 : 0;
  for (int64_t i = threadIdx.x * 8; i < whole; i += kAnyThreads * 8) {
    float v[8];
    x.Get8(row, i, v);
#pragma unroll
    for (int c = 0; c < 8; ++c) squares = fmaf(v[c], v[c], squares);
  }
  for (int64_t i = whole + threadIdx.x; i < width; i += kAnyThreads) {
    squares = fmaf(x.Get(row, i), x.Get(row, i), squares);
  }
  squares = BlockSum(squares);
  if (threadIdx.x == 0) out[row] = squares;
}

struct Residual {
  AnyRows x, branch, sum;
  float alpha, beta;
  int64_t width, pieces;  // pieces of eight a row, or of one where rows are not aligned
  int64_t count;
  bool aligned;
};

__global__ void __launch_bounds__(kAnyThreads)
    AddResidualKernel(const __grid_constant__ Residual a) {
  AllowNextKernel();
  AwaitEarlierKernels();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kAnyThreads + threadIdx.x;
  if (at >= a.count) return;
  const int64_t row = at / a.pieces, piece = at % a.pieces;
  if (a.aligned) {
    float x[8], branch[8];
    a.x.Get8(row, piece * 8, x);
    a.branch.Get8(row, piece * 8, branch);
#pragma unroll
    for (int c = 0; c < 8; ++c) x[c] = a.alpha * x[c] + a.beta * branch[c];
    a.sum.Set8(row, piece * 8, x);
  } else {
    a.sum.Set(row, piece, a.alpha * a.x.Get(row, piece) + a.beta * a.branch.Get(row, piece));
  }
}

void CheckRows(const Tensor& t, const Tensor& like, const char* what) {
  Check((t.dtype == DType::kF32 || t.dtype == DType::kBF16) && t.rank == 2 && t.stride[1] == 1 &&
            t.dim(0) == like.dim(0) && t.dim(1) == like.dim(1),
        what);
}

const float* Weight(const Tensor& weight, int64_t width, const char* what) {
  const auto w = weight.As<const float, 1>();
  Check(w.dim(0) == width, what);
  return w.data;
}

int Threads(int64_t pieces, int pieces_a_thread) {
  const int64_t threads = (pieces + pieces_a_thread - 1) / pieces_a_thread;
  return static_cast<int>((threads + 31) / 32 * 32);
}

dim3 RowGrid(int64_t rows) {
  return dim3(static_cast<unsigned>(rows));
}

// Few rows, those of decoding, keep a block each: they are spread over more multiprocessors.
template <typename Kernel, typename Rows>
void LaunchRows(Queue& queue, Kernel* by_block, Kernel* by_warp, const Rows& rows, int threads) {
  if (rows.pieces <= 32 && rows.rows >= 32 * Multiprocessors()) {
    LaunchOverlapped(queue, by_warp, RowGrid((rows.rows + kRowsByWarp - 1) / kRowsByWarp),
                     32 * kRowsByWarp, 0, rows);
  } else {
    LaunchOverlapped(queue, by_block, RowGrid(rows.rows), threads, 0, rows);
  }
}

}  // namespace

void AddNorm(Queue& queue, const AddNormArgs& a) {
  constexpr const char* kShapes = "AddNorm: shapes or types disagree";
  const bool has_branch = !a.branch.empty();
  const Tensor& branch = has_branch ? a.branch : a.x;
  Tensor sum = a.sum;  // stays empty where nobody reads it
  for (const Tensor* t : {&a.x, &branch, &a.out}) CheckRows(*t, a.x, kShapes);
  if (!sum.empty()) CheckRows(sum, a.x, kShapes);
  Check(has_branch || a.alpha == 1.0f, "AddNorm: alpha without a branch");
  const int64_t rows = a.x.dim(0), width = a.x.dim(1);
  const float* weight = Weight(a.weight, width, kShapes);
  if (rows == 0 || a.x.dim(1) == 0) return;
  const bool common = width % 8 == 0 && width <= kMostInRegisters && HasAlignedRows(a.weight) &&
                      HasAlignedRows(a.x) && HasAlignedRows(branch) && HasAlignedRows(a.out) &&
                      (sum.empty() || HasAlignedRows(sum)) &&
                      (!has_branch || a.branch.dtype == a.out.dtype);
  if (!common) {
    Scratch scratch(queue);
    if (sum.empty()) sum = scratch.GetRows(DType::kF32, rows, width);
    Check(width <= kMostWidth, "AddNorm: rows of more than 49,152 numbers");
    const auto bytes = static_cast<size_t>(width) * sizeof(float);
    static const bool enlarged = [] {
      CheckCuda(cudaFuncSetAttribute(AddNormAnyKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     kMostWidth * sizeof(float)));
      return true;
    }();
    static_cast<void>(enlarged);
    AddNormAnyKernel<<<RowGrid(rows), kAnyThreads, bytes, queue.stream()>>>(
        {.x = AnyRows(a.x),
         .branch = AnyRows(branch),
         .sum = AnyRows(sum),
         .out = AnyRows(a.out),
         .weight = weight,
         .alpha = a.alpha,
         .beta = a.beta,
         .eps = a.eps,
         .width = width,
         .has_branch = has_branch});
    CheckLaunch();
    return;
  }
  const bool writes_sum =
      !sum.empty() && (has_branch || sum.data != a.x.data || sum.dtype != a.x.dtype);
  const auto pieces = static_cast<int>(width / 8);
  WithElement(a.x, [&]<typename X>() {
    WithElement(a.out, [&]<typename Out>() {
      const AddNormRows<X, Out> rows_of{.x = Matrix<X>(a.x),
                                        .branch = Matrix<Out>(branch),
                                        .sum = AnyRows(sum),
                                        .out = Matrix<Out>(a.out),
                                        .weight = weight,
                                        .alpha = a.alpha,
                                        .beta = a.beta,
                                        .eps = a.eps,
                                        .pieces = pieces,
                                        .rows = rows,
                                        .has_branch = has_branch,
                                        .writes_sum = writes_sum};
      LaunchRows(queue, AddNormKernel<X, Out, false>, AddNormKernel<X, Out, true>, rows_of,
                 Threads(pieces, kPieces));
    });
  });
}

void AddResidual(Queue& queue, const AddResidualArgs& a) {
  constexpr const char* kShapes = "AddResidual: shapes or types disagree";
  for (const Tensor* t : {&a.x, &a.branch, &a.sum}) CheckRows(*t, a.x, kShapes);
  const int64_t rows = a.x.dim(0), width = a.x.dim(1);
  if (rows == 0 || a.x.dim(1) == 0) return;
  const bool aligned =
      width % 8 == 0 && HasAlignedRows(a.x) && HasAlignedRows(a.branch) && HasAlignedRows(a.sum);
  const int64_t pieces = aligned ? width / 8 : width, count = rows * pieces;
  const Residual residual{.x = AnyRows(a.x),
                          .branch = AnyRows(a.branch),
                          .sum = AnyRows(a.sum),
                          .alpha = a.alpha,
                          .beta = a.beta,
                          .width = width,
                          .pieces = pieces,
                          .count = count,
                          .aligned = aligned};
  LaunchOverlapped(queue, AddResidualKernel, RowGrid((count + kAnyThreads - 1) / kAnyThreads),
                   kAnyThreads, 0, residual);
}

void SumOfSquares(Queue& queue, const Tensor& x, const Tensor& out) {
  const auto squares = out.As<float, 1>();
  CheckRows(x, x, "SumOfSquares: x is a matrix of float32 or bf16");
  Check(squares.dim(0) == x.dim(0), "SumOfSquares: shapes disagree");
  if (x.dim(0) == 0) return;
  LaunchOverlapped(queue, SquaresKernel, RowGrid(x.dim(0)), kAnyThreads, 0, AnyRows(x), x.dim(1),
                   HasAlignedRows(x), squares.data);
}

void GatedNorm(Queue& queue, const GatedNormArgs& a) {
  constexpr const char* kShapes = "GatedNorm: shapes or types disagree";
  for (const Tensor* t : {&a.x, &a.gate, &a.out}) CheckRows(*t, a.x, kShapes);
  const int64_t rows = a.x.dim(0), numbers = a.x.dim(1);
  const float* weight = Weight(a.weight, numbers, kShapes);
  const float* squares = nullptr;
  if (a.squares.empty()) {
    Check(a.width == numbers, "GatedNorm: a part of a row needs the squares of the whole");
  } else {
    const auto given = a.squares.As<const float, 1>();
    Check(given.dim(0) == rows && a.width >= numbers, kShapes);
    squares = given.data;
  }
  if (rows == 0 || a.x.dim(1) == 0) return;
  const bool common = numbers % 8 == 0 && numbers <= kMostInRegisters && HasAlignedRows(a.weight) &&
                      HasAlignedRows(a.x) && HasAlignedRows(a.gate) && HasAlignedRows(a.out) &&
                      a.gate.dtype == a.x.dtype && a.out.dtype == a.x.dtype;
  if (!common) {
    GatedNormAnyKernel<<<RowGrid(rows), kAnyThreads, 0, queue.stream()>>>({.x = AnyRows(a.x),
                                                                           .gate = AnyRows(a.gate),
                                                                           .out = AnyRows(a.out),
                                                                           .weight = weight,
                                                                           .squares = squares,
                                                                           .eps = a.eps,
                                                                           .numbers = numbers,
                                                                           .width = a.width});
    CheckLaunch();
    return;
  }
  const auto pieces = static_cast<int>(numbers / 8);
  WithElement(a.x, [&]<typename T>() {
    const GatedRows<T> rows_of{.x = Matrix<T>(a.x),
                               .gate = Matrix<T>(a.gate),
                               .out = Matrix<T>(a.out),
                               .weight = weight,
                               .squares = squares,
                               .eps = a.eps,
                               .pieces = pieces,
                               .rows = rows,
                               .width = a.width};
    LaunchRows(queue, GatedNormKernel<T, false>, GatedNormKernel<T, true>, rows_of,
               Threads(pieces, kGatedPieces));
  });
}

}  // namespace mm01::cuda
