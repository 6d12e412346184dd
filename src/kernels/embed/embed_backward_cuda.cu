// The CPU, which has the ids, sorts their rows; a block then takes one id and adds up its rows in
// order.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/any_rows.cuh"
#include "kernels/embed/embed_backward_cuda.h"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 128;

// A block takes a row, or an id, and kThreads * kWide columns.
template <int kWide>
__device__ __forceinline__ int64_t FirstColumn() {
  return (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kWide;
}

template <int kWide>
__global__ void __launch_bounds__(kThreads)
    TakeRows(const int32_t* ids, AnyRows table, AnyRows out, int64_t width) {
  const int64_t i = FirstColumn<kWide>();
  if (i >= width) return;
  float x[kWide];
  Get(table, ids[blockIdx.x], i, x);
  Set(out, blockIdx.x, i, x);
}

// Rows of one id: rows[begin] .. rows[the next one's begin - 1].
struct Run {
  int32_t id, begin;
};

template <int kWide>
__global__ void __launch_bounds__(kThreads)
    AddRows(const Run* runs, const int32_t* rows, AnyRows d_out, AnyRows d_table, int64_t width) {
  const int64_t i = FirstColumn<kWide>();
  if (i >= width) return;
  const Run run = runs[blockIdx.x];
  const int32_t end = runs[blockIdx.x + 1].begin;
  float sum[kWide];
  Get(d_table, run.id, i, sum);
  constexpr int kAhead = kWide == 8 ? 4 : 1;  // rows fetched at a time
  for (int32_t at = run.begin; at < end; at += kAhead) {
    float x[kAhead][kWide];
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
      if (at + r < end) Get(d_out, rows[at + r], i, x[r]);
    }
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
      if (at + r >= end) continue;
#pragma unroll
      for (int c = 0; c < kWide; ++c) sum[c] += x[r][c];
    }
  }
  Set(d_table, run.id, i, sum);
}

void CheckShapes(std::span<const int32_t> ids, const Tensor& rows, const Tensor& table) {
  Check(table.dtype == DType::kF32 && table.rank == 2 && table.stride[1] == 1 &&
            (rows.dtype == DType::kF32 || rows.dtype == DType::kBF16) && rows.rank == 2 &&
            rows.stride[1] == 1 && rows.dim(0) == std::ssize(ids) && rows.dim(1) == table.dim(1),
        "Embed: shapes or types disagree");
  for (const int32_t id : ids) {
    Check(0 <= id && id < table.dim(0), "Embed: a token id outside the vocabulary");
  }
}

// Calls f.operator()<kWide>(grid) for as many blocks by as wide pieces as the rows allow.
template <typename F>
void WithWidth(int64_t blocks, const Tensor& rows, const Tensor& table, const F& f) {
  const int64_t width = rows.dim(1);
  const bool wide = width % 8 == 0 && HasAlignedRows(rows) && HasAlignedRows(table);
  const int64_t a_block = kThreads * (wide ? 8 : 1);
  const dim3 grid(static_cast<unsigned>(blocks),
                  static_cast<unsigned>((width + a_block - 1) / a_block));
  if (wide) {
    f.template operator()<8>(grid);
  } else {
    f.template operator()<1>(grid);
  }
  CheckLaunch();
}

template <typename T>
T* OnDevice(Queue& queue, Scratch& scratch, std::span<const T> values) {
  T* copy = scratch.Get<T>(std::ssize(values));
  queue.CopyToDevice(copy, values.data(), static_cast<int64_t>(values.size_bytes()));
  return copy;
}

}  // namespace

void EmbedRows(Queue& queue, std::span<const int32_t> ids, const Tensor& table, const Tensor& out) {
  CheckShapes(ids, out, table);
  if (out.size() == 0) return;
  Scratch scratch(queue);
  const int32_t* taken = OnDevice(queue, scratch, ids);
  WithWidth(out.dim(0), out, table, [&]<int kWide>(dim3 grid) {
    TakeRows<kWide>
        <<<grid, kThreads, 0, queue.stream()>>>(taken, AnyRows(table), AnyRows(out), out.dim(1));
  });
}

void EmbedBackward(Queue& queue, std::span<const int32_t> ids, const Tensor& d_out,
                   const Tensor& d_table) {
  CheckShapes(ids, d_out, d_table);
  if (d_out.size() == 0) return;
  std::vector<uint64_t> order;  // id, then row
  order.reserve(ids.size());
  for (const int32_t id : ids) order.push_back(static_cast<uint64_t>(id) << 32 | order.size());
  std::ranges::sort(order);
  std::vector<int32_t> rows;
  std::vector<Run> runs;
  for (const uint64_t key : order) {
    const auto id = static_cast<int32_t>(key >> 32);
    if (runs.empty() || runs.back().id != id)
      runs.push_back({id, static_cast<int32_t>(rows.size())});
    rows.push_back(static_cast<int32_t>(key & 0xffffffffu));
  }
  const auto num_runs = std::ssize(runs);
  runs.push_back({-1, static_cast<int32_t>(rows.size())});
  Scratch scratch(queue);
  const int32_t* sorted = OnDevice(queue, scratch, std::span<const int32_t>(rows));
  const Run* by_id = OnDevice(queue, scratch, std::span<const Run>(runs));
  WithWidth(num_runs, d_out, d_table, [&]<int kWide>(dim3 grid) {
    AddRows<kWide><<<grid, kThreads, 0, queue.stream()>>>(by_id, sorted, AnyRows(d_out),
                                                          AnyRows(d_table), d_out.dim(1));
  });
}

}  // namespace mm01::cuda
