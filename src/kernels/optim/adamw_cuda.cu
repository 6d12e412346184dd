// One launch for many tensors: each block takes a piece of 16,384 numbers of one of them, found in
// a table that goes to the device with the call. Numbers are taken one at a time, side by side in a
// warp, so tensors may begin anywhere.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/optim/adamw_cuda.h"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256, kUnroll = 4;
constexpr int64_t kPiece = 16384;

int64_t PiecesOf(const Tensor& x) {
  return (x.size() + kPiece - 1) / kPiece;
}

struct Update {
  float* value;
  const float* gradient;
  float *m, *v;
  int64_t size, first_block;
  float scale, beta1, beta2, rest1, rest2, rate, root, eps, decay;
};

struct Squares {
  const float* data;
  int64_t size, first_block;
};

// The last entry that begins at this block or before it.
template <typename Entry>
__device__ __forceinline__ const Entry& EntryOf(const Entry* table, int count) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table[middle].first_block <= blockIdx.x) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return table[low];
}

__global__ void __launch_bounds__(kThreads) UpdateTensors(const Update* table, int count) {
  const Update u = EntryOf(table, count);
  const int64_t begin = (blockIdx.x - u.first_block) * kPiece;
  const int64_t end = min(begin + kPiece, u.size);
  for (int64_t first = begin + threadIdx.x; first < end; first += kThreads * kUnroll) {
    float value[kUnroll], g[kUnroll], m[kUnroll], v[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) {
      const int64_t i = first + j * kThreads;
      if (i >= end) continue;
      value[j] = u.value[i];
      g[j] = u.gradient[i];
      m[j] = u.m[i];
      v[j] = u.v[i];
    }
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) {
      const int64_t i = first + j * kThreads;
      if (i >= end) continue;
      const float gradient = g[j] * u.scale;
      m[j] = u.beta1 * m[j] + u.rest1 * gradient;
      v[j] = u.beta2 * v[j] + u.rest2 * (gradient * gradient);
      const float below = sqrtf(v[j]) * u.root + u.eps;
      u.m[i] = m[j];
      u.v[i] = v[j];
      u.value[i] = value[j] - (u.rate * m[j] / below + u.decay * value[j]);
    }
  }
}

// A piece's sum: a thread's numbers in order, threads in halves.
__global__ void __launch_bounds__(kThreads)
    SumPieces(const Squares* table, int count, double* sums) {
  __shared__ double threads[kThreads];
  const Squares s = EntryOf(table, count);
  const int64_t begin = (blockIdx.x - s.first_block) * kPiece;
  const int64_t end = min(begin + kPiece, s.size);
  double sum = 0.0;
#pragma unroll 8
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const double x = s.data[i];
    sum = fma(x, x, sum);
  }
  threads[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) threads[threadIdx.x] += threads[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = threads[0];
}

template <typename Entry>
const Entry* OnDevice(Queue& queue, Scratch& scratch, const std::vector<Entry>& table) {
  auto* entries = scratch.Get<Entry>(std::ssize(table));
  queue.CopyToDevice(entries, table.data(),
                     std::ssize(table) * static_cast<int64_t>(sizeof(Entry)));
  return entries;
}

unsigned Blocks(int64_t count) {
  Check(count <= std::numeric_limits<int32_t>::max(), "AdamW: too many numbers for one call");
  return static_cast<unsigned>(count);
}

}  // namespace

void AdamWMany(Queue& queue, std::span<const AdamWArgs> tensors) {
  std::vector<Update> table;
  int64_t blocks = 0;
  for (const AdamWArgs& a : tensors) {
    if (a.value.size() == 0) continue;
    const auto step = static_cast<double>(a.step);
    table.push_back({.value = static_cast<float*>(a.value.data),
                     .gradient = static_cast<const float*>(a.gradient.data),
                     .m = static_cast<float*>(a.m.data),
                     .v = static_cast<float*>(a.v.data),
                     .size = a.value.size(),
                     .first_block = blocks,
                     .scale = static_cast<float>(a.gradient_scale),
                     .beta1 = static_cast<float>(a.beta1),
                     .beta2 = static_cast<float>(a.beta2),
                     .rest1 = static_cast<float>(1.0 - a.beta1),
                     .rest2 = static_cast<float>(1.0 - a.beta2),
                     .rate = static_cast<float>(a.learning_rate / (1.0 - std::pow(a.beta1, step))),
                     .root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(a.beta2, step))),
                     .eps = static_cast<float>(a.eps),
                     .decay = static_cast<float>(a.learning_rate * a.weight_decay)});
    blocks += PiecesOf(a.value);
  }
  if (blocks == 0) return;
  Scratch scratch(queue);
  const Update* updates = OnDevice(queue, scratch, table);
  UpdateTensors<<<Blocks(blocks), kThreads, 0, queue.stream()>>>(updates,
                                                                 static_cast<int>(table.size()));
  CheckLaunch();
}

void AdamW(Queue& queue, const AdamWArgs& args) {
  cuda::AdamWMany(queue, {&args, 1});
}

double SumOfSquaresOfMany(Queue& queue, std::span<const Tensor> tensors) {
  std::vector<Squares> table;
  int64_t blocks = 0;
  for (const Tensor& x : tensors) {
    if (x.size() == 0) continue;
    table.push_back({static_cast<const float*>(x.data), x.size(), blocks});
    blocks += PiecesOf(x);
  }
  if (blocks == 0) return 0.0;
  Scratch scratch(queue);
  auto* sums = scratch.Get<double>(blocks);
  const Squares* squares = OnDevice(queue, scratch, table);
  SumPieces<<<Blocks(blocks), kThreads, 0, queue.stream()>>>(squares,
                                                             static_cast<int>(table.size()), sums);
  CheckLaunch();
  std::vector<double> pieces(static_cast<size_t>(blocks));
  queue.CopyToHost(pieces.data(), sums, blocks * static_cast<int64_t>(sizeof(double)));
  double total = 0.0;
  for (size_t t = 0; t < table.size(); ++t) {
    const auto end = static_cast<size_t>(t + 1 < table.size() ? table[t + 1].first_block : blocks);
    double sum = 0.0;
    for (auto i = static_cast<size_t>(table[t].first_block); i < end; ++i) sum += pieces[i];
    total += sum;
  }
  return total;
}

double SumOfSquaresOf(Queue& queue, const Tensor& x) {
  return cuda::SumOfSquaresOfMany(queue, {&x, 1});
}

}  // namespace mm01::cuda
