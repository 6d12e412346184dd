// The CPU, which has the ids, sorts their rows; a block then takes up to 64 rows of one id and adds
// them up in order. Sums of an id with more rows than that, as a comma has, are added up after
// them.
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

constexpr int32_t kPieceRows = 64;

// Rows of one id: rows[begin] .. rows[the next one's begin - 1]. Their sum goes into the table, or,
// as the id's part number `part`, into a row of its own.
struct Piece {
  int32_t id, begin;
  int32_t part;  // -1: all rows of the id are here
};

// An id of several pieces: parts[begin] .. parts[end - 1].
struct Parts {
  int32_t id, begin, end;
};

// sum += of[i] for `count` rows in order; row(i) is the i-th one's number.
template <int kWide, typename Row>
__device__ __forceinline__ void AddInOrder(const AnyRows& of, int64_t column, int32_t count,
                                           Row&& row, float (&sum)[kWide]) {
  constexpr int kAhead = kWide == 8 ? 8 : 1;  // rows fetched at a time
  for (int32_t at = 0; at < count; at += kAhead) {
    float x[kAhead][kWide];
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
      if (at + r < count) Get(of, row(at + r), column, x[r]);
    }
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
      if (at + r >= count) continue;
#pragma unroll
      for (int c = 0; c < kWide; ++c) sum[c] += x[r][c];
    }
  }
}

template <int kWide>
__global__ void __launch_bounds__(kThreads)
    AddRows(const Piece* pieces, const int32_t* rows, AnyRows d_out, AnyRows d_table, AnyRows parts,
            int64_t width) {
  const int64_t i = FirstColumn<kWide>();
  if (i >= width) return;
  const Piece piece = pieces[blockIdx.x];
  const int32_t* const mine = rows + piece.begin;
  float sum[kWide] = {};
  if (piece.part < 0) Get(d_table, piece.id, i, sum);
  AddInOrder(
      d_out, i, pieces[blockIdx.x + 1].begin - piece.begin, [&](int32_t r) { return mine[r]; },
      sum);
  if (piece.part < 0) {
    Set(d_table, piece.id, i, sum);
  } else {
    Set(parts, piece.part, i, sum);
  }
}

template <int kWide>
__global__ void __launch_bounds__(kThreads)
    AddParts(const Parts* all, AnyRows parts, AnyRows d_table, int64_t width) {
  const int64_t i = FirstColumn<kWide>();
  if (i >= width) return;
  const Parts p = all[blockIdx.x];
  float sum[kWide];
  Get(d_table, p.id, i, sum);
  AddInOrder(
      parts, i, p.end - p.begin, [&](int32_t r) { return p.begin + r; }, sum);
  Set(d_table, p.id, i, sum);
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
  for (const uint64_t key : order) rows.push_back(static_cast<int32_t>(key & 0xffffffffu));
  const auto id_at = [&](size_t i) { return static_cast<int32_t>(order[i] >> 32); };
  std::vector<Piece> pieces;
  std::vector<Parts> several;
  int32_t num_parts = 0;
  for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    while (end < order.size() && id_at(end) == id_at(begin)) ++end;
    const auto first = static_cast<int32_t>(begin), count = static_cast<int32_t>(end - begin);
    if (count <= kPieceRows) {
      pieces.push_back({id_at(begin), first, -1});
      continue;
    }
    several.push_back({.id = id_at(begin), .begin = num_parts, .end = 0});
    for (int32_t at = 0; at < count; at += kPieceRows) {
      pieces.push_back({id_at(begin), first + at, num_parts++});
    }
    several.back().end = num_parts;
  }
  const auto num_pieces = std::ssize(pieces);
  pieces.push_back({-1, static_cast<int32_t>(rows.size()), -1});
  Scratch scratch(queue);
  const int32_t* sorted = OnDevice(queue, scratch, std::span<const int32_t>(rows));
  const Piece* taken = OnDevice(queue, scratch, std::span<const Piece>(pieces));
  const Tensor parts = scratch.GetRows(DType::kF32, num_parts, d_table.dim(1));
  WithWidth(num_pieces, d_out, d_table, [&]<int kWide>(dim3 grid) {
    AddRows<kWide><<<grid, kThreads, 0, queue.stream()>>>(
        taken, sorted, AnyRows(d_out), AnyRows(d_table), AnyRows(parts), d_out.dim(1));
  });
  if (several.empty()) return;
  const Parts* all = OnDevice(queue, scratch, std::span<const Parts>(several));
  WithWidth(std::ssize(several), parts, d_table, [&]<int kWide>(dim3 grid) {
    AddParts<kWide><<<grid, kThreads, 0, queue.stream()>>>(all, AnyRows(parts), AnyRows(d_table),
                                                           d_out.dim(1));
  });
}

}  // namespace mm01::cuda
