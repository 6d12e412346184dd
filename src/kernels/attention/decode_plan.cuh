// Which block of the decoding kernel takes which splits of the keys.
#pragma once

#include "kernels/attention/attention_hopper.cuh"

namespace mm01::cuda {

inline constexpr int kUnit = 512;       // keys; a split is one unit
inline constexpr int kShortUnits = 32;  // or, from this unit on, two
inline constexpr int kWarps = 4;        // that multiply; one more copies
inline constexpr int kDecodeThreads = 32 * (kWarps + 1);

__host__ __device__ constexpr int UnitsOf(int keys) {
  return (keys + kUnit - 1) / kUnit;
}
__device__ __forceinline__ int SplitsOf(int units) {
  return units <= kShortUnits ? units : kShortUnits + (units - kShortUnits + 1) / 2;
}
__device__ __forceinline__ int FirstUnit(int split) {
  return split <= kShortUnits ? split : kShortUnits + (split - kShortUnits) * 2;
}
__device__ __forceinline__ int UnitsOfSplitAt(int unit) {
  return unit < kShortUnits ? 1 : 2;
}

// Where the merging kernel finds what it needs about a row.
struct RowPlace {
  int64_t unit;     // first of the row's sequence and tile, of all
  int units;        // of a kv head
  int row_of_tile;  // 0 .. rows of a tile - 1
  int keys;         // that the row sees
};

struct DecodeWork {
  Sequences sequences;
  RowPlace* places;  // [T], written by the first block
  int64_t most_units;
  int kv_heads;
  int tile_rows;  // query rows of a block
};

struct PlanRoom {
  int64_t warp_units[kDecodeThreads / 32];
  int64_t first, end;  // units of this block
  int64_t start_unit;  // of sequence `start`
  int start;           // the sequence that has unit `first`
};

// Units of a sequence: all of kv head 0 for its first tile of rows, then kv head 1, ...; then the
// next tile.
struct Shape {
  int tiles, units;  // of rows; of one kv head and tile

  __device__ __forceinline__ Shape(const DecodeWork& p, const Sequence& s) {
    tiles = (s.rows + p.tile_rows - 1) / p.tile_rows;
    units = UnitsOf(s.Visible(s.rows - 1));
  }
  __device__ __forceinline__ int64_t All(const DecodeWork& p) const {
    return static_cast<int64_t>(tiles) * p.kv_heads * units;
  }
};

__device__ __forceinline__ void WritePlaces(const DecodeWork& p, const Sequence& s,
                                            const Shape& shape, int64_t unit) {
  for (int r = 0; r < s.rows; ++r) {
    const int tile = r / p.tile_rows;
    p.places[s.row + r] = {unit + static_cast<int64_t>(tile) * p.kv_heads * shape.units,
                           shape.units, r - tile * p.tile_rows, s.Visible(r)};
  }
}

// The sum of x over the threads before this one, and of all.
struct Scan {
  int64_t before, all;
};
__device__ __forceinline__ Scan ScanBlock(PlanRoom& s, int64_t x) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t sum = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int64_t other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();
  if (lane == 31) s.warp_units[warp] = sum;
  __syncthreads();
  Scan scan{sum - x, 0};
  for (int w = 0; w < kDecodeThreads / 32; ++w) {
    if (w < warp) scan.before += s.warp_units[w];
    scan.all += s.warp_units[w];
  }
  return scan;
}

// All threads: s.first .. s.start. The first block also writes where each row's results will be.
__device__ __forceinline__ void Plan(const DecodeWork& p, PlanRoom& s) {
  const auto units_of = [&](int n) {
    return n < p.sequences.count ? Shape(p, p.sequences.Get(n)).All(p) : 0;
  };
  int64_t mine = 0;
  for (int n = threadIdx.x; n < p.sequences.count; n += kDecodeThreads) mine += units_of(n);
  const int64_t all = ScanBlock(s, mine).all;
  // More than the scratch memory was made for.
  if (all > p.most_units) __trap();
  const int64_t first = all * blockIdx.x / gridDim.x;
  if (threadIdx.x == 0) {
    s.first = first;
    s.end = all * (blockIdx.x + 1) / gridDim.x;
  }
  int64_t before = 0;
  for (int base = 0; base < p.sequences.count; base += kDecodeThreads) {
    const int n = base + threadIdx.x;
    const int64_t units = units_of(n);
    const Scan scan = ScanBlock(s, units);
    const int64_t from = before + scan.before;
    if (from <= first && first < from + units) {
      s.start = n;
      s.start_unit = from;
    }
    if (blockIdx.x == 0 && n < p.sequences.count) {
      const Sequence sequence = p.sequences.Get(n);
      WritePlaces(p, sequence, Shape(p, sequence), from);
    }
    before += scan.all;
  }
  __syncthreads();
}

// The splits whose first unit is one of this block's, in order.
struct Cursor {
  const DecodeWork& p;
  int64_t at, end;  // unit of all; where this block's end
  int seq;
  Sequence sequence;
  Shape shape;
  int tile, kv_head, unit;

  __device__ __forceinline__ Cursor(const DecodeWork& params, const PlanRoom& s)
      : p(params),
        at(s.first),
        end(s.end),
        seq(at < end ? s.start : 0),
        sequence(p.sequences.Get(seq)),
        shape(p, sequence) {
    if (at >= end) return;
    const int in_sequence = static_cast<int>(at - s.start_unit), of_tile = p.kv_heads * shape.units;
    tile = in_sequence / of_tile;
    kv_head = in_sequence % of_tile / shape.units;
    unit = in_sequence % shape.units;
    // The second half of a split is its first half's owner's.
    if (unit > kShortUnits && (unit - kShortUnits) % 2 == 1) Skip(1);
  }
  __device__ __forceinline__ bool More() const { return at < end; }
  __device__ __forceinline__ void Next() { Skip(min(UnitsOfSplitAt(unit), shape.units - unit)); }
  __device__ __forceinline__ int64_t Slot() const { return at; }
  __device__ __forceinline__ int Begin() const { return unit * kUnit; }
  __device__ __forceinline__ int End() const {
    const int row = min(sequence.rows, (tile + 1) * p.tile_rows) - 1;
    return min(sequence.Visible(row), (unit + UnitsOfSplitAt(unit)) * kUnit);
  }
  __device__ __forceinline__ int NumPages() const {
    return max(0, (End() - Begin() + kPage - 1) / kPage);
  }

 private:
  __device__ __forceinline__ void Skip(int units) {
    at += units;
    unit += units;
    if (unit < shape.units) return;
    unit = 0;
    if (++kv_head < p.kv_heads) return;
    kv_head = 0;
    if (++tile < shape.tiles || at >= end) return;
    tile = 0;
    do {  // sequences may be empty; there is another unit, so this ends
      sequence = p.sequences.Get(++seq);
      shape = Shape(p, sequence);
    } while (shape.All(p) == 0);
  }
};

}  // namespace mm01::cuda
