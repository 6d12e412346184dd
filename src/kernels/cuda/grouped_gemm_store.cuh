// How the sums of a tile leave the grouped products' kernel.
//
// A warpgroup's outputs go to shared memory a box at a time, 64 rows of x by its 64 outputs, or 32
// with w_up, under the swizzle that neither side meets a bank twice with. Bulk copies take whole
// boxes on to memory while the next ones are filled; an expert's last rows, behind which stand the
// next one's, are stored by the threads, as are those of int8 weights, whose columns may be
// permuted.
#pragma once

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/grouped_gemm_tiles.cuh"

namespace mm01::cuda {
namespace {

__device__ __forceinline__ float Silu(float x) {
  return x * Sigmoid(x);
}

// Of a warpgroup. Hidden from the compiler, which else works out the addresses of every tile size
// ahead of the sums and has no registers left for these.
__device__ __forceinline__ int ThreadOfTile() {
  int thread = threadIdx.x % 128;
  asm volatile("" : "+r"(thread));
  return thread;
}

__device__ __forceinline__ void SyncWarpgroup(int consumer) {
  NamedBarrierSync(1 + consumer, 128);
}

// The boxes of a warpgroup: the weights of the tile's last stage that it alone has read, and half
// of the stage's rows of x.
template <int kColumns, bool kAsync>
class Outbox {
 public:
  __device__ __forceinline__ Outbox(uint8_t* weights, uint8_t* half_of_x, int consumer)
      : weights_(SharedAddress(weights)),
        half_of_x_(SharedAddress(half_of_x)),
        consumer_(consumer),
        thread_(ThreadOfTile()) {
    const int warp = thread_ / 32, lane = thread_ % 32;
    corner_ = kColumns == 64 ? Offset(lane / 16 * 8 + lane % 8, 2 * warp + lane / 8 % 2)
                             : Offset(lane, warp);
    if (kAsync) NamedBarrierSync<1 + kConsumers, 128 * kConsumers>();  // all have read x
  }

  // A box that is free.
  __device__ __forceinline__ void Open() {
    if (kAsync && thread_ == 0) TmaStoreWait<kBoxes - 1>();
    SyncWarpgroup(consumer_);
    box_ =
        next_ < kOfWeights ? weights_ + next_ * kBytes : half_of_x_ + (next_ - kOfWeights) * kBytes;
    next_ = (next_ + 1) % kBoxes;
  }
  // Pairs of this thread's sums for stmatrix.trans: of rows `row` and on, a multiple of 8 and where
  // a warp has 8 outputs of 32.
  __device__ __forceinline__ void Put(int row, const uint32_t (&v)[4]) const {
    StoreMatrixTransposed(box_ + corner_ + row * kColumns * 2, v[0], v[1], v[2], v[3]);
  }
  // The box, of which `rows` are wanted, to outputs n and on of row `row` and on. With bulk copies
  // fewer rows than a box has are left to SendRest, which comes when the sums have all gone:
  // `which` of three.
  __device__ __forceinline__ void Send(const Target& to, int64_t row, int rows, int n, int which,
                                       bool pair_order = false) {
    if (kAsync) ProxyFence();
    SyncWarpgroup(consumer_);
    if (!kAsync) {
      StoreRows(box_, to, row, min(rows, kBoxRows), n, pair_order);
    } else if (rows < kBoxRows) {
      rest_[which] = box_;
    } else if (thread_ == 0) {
      TmaStore(&to.map, __cvta_shared_to_generic(box_), n, static_cast<int>(row));
      TmaStoreCommit();
    }
  }
  __device__ __forceinline__ void SendRest(const Target& to, const Tile& tile, int n,
                                           int which) const {
    const int rows = tile.rows % kBoxRows;
    if (kAsync && rows > 0) {
      StoreRows(rest_[which], to, tile.row + tile.rows - rows, rows, n, false);
    }
  }
  // Until shared memory has been read.
  __device__ __forceinline__ void Close() const {
    if (!kAsync) return;
    if (thread_ == 0) TmaStoreWait<0>();
    SyncWarpgroup(consumer_);
  }

 private:
  static constexpr int kBytes = kBoxRows * kColumns * 2, kPieces = kColumns / 8;
  static constexpr int kOfWeights = kBytesStaging / kBytes;
  static constexpr int kOfX = kAsync ? kBytesX<false> / kConsumers / kBytes : 0;
  static constexpr int kBoxes = kOfWeights + kOfX;

  // Of eight outputs of a row.
  __device__ __forceinline__ static uint32_t Offset(int row, int piece) {
    if (kColumns == 64) return Swizzle128(row, piece * 16);
    return row * 64 + ((piece ^ (row >> 1 & 3)) << 4);
  }
  __device__ __forceinline__ void StoreRows(uint32_t box, const Target& to, int64_t row, int rows,
                                            int n, bool pair_order) const {
    const auto load = [&](int r, int piece) {
      return *static_cast<const uint4*>(__cvta_shared_to_generic(box + Offset(r, piece)));
    };
    const auto store = [&](int r, int piece, const uint4& v) {
      const int column = n + 8 * piece;  // they come in eights
      if (column >= to.columns) return;
      *reinterpret_cast<uint4*>(static_cast<bf16*>(to.data) + (row + r) * to.stride + column) = v;
    };
    for (int at = thread_ * 2; at < rows * kPieces; at += 2 * 128) {
      const int r = at / kPieces, piece = at % kPieces;
      const uint4 a = load(r, piece), b = load(r, piece + 1);
      store(r, piece, pair_order ? make_uint4(a.x, a.z, b.x, b.z) : a);
      store(r, piece + 1, pair_order ? make_uint4(a.y, a.w, b.y, b.w) : b);
    }
  }

  uint32_t weights_, half_of_x_, box_ = 0, corner_, rest_[3] = {};
  int consumer_, thread_, next_ = 0;
};

// value(gate, up), pairs of bf16 from pairs of sums, of the box that begins at row `begin`.
template <typename Box, int kCount, typename F>
__device__ __forceinline__ void FillGated(const Box& box, const float (&sum)[kCount], int begin,
                                          bool up_first, F&& value) {
#pragma unroll
  for (int j = begin / 8; j < (begin + kBoxRows) / 8; j += 4) {
    if (4 * j >= kCount) continue;
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const d = &sum[4 * (j + i)];
      const float2 low{d[0], d[1]}, high{d[2], d[3]};
      v[i] = up_first ? value(high, low) : value(low, high);
    }
    box.Put(8 * j - begin, v);
  }
}

// value(sums), a pair of bf16 from one of sums.
template <typename Box, int kCount, typename F>
__device__ __forceinline__ void Fill(const Box& box, const float (&sum)[kCount], int begin,
                                     F&& value) {
#pragma unroll
  for (int j = begin / 8; j < (begin + kBoxRows) / 8; j += 2) {
    if (4 * j >= kCount) continue;
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = value(sum[4 * j + 2 * i], sum[4 * j + 2 * i + 1]);
    box.Put(8 * j - begin, v);
  }
}

// As if it had been to memory.
__device__ __forceinline__ float Rounded(float x) {
  return __bfloat162float(__float2bfloat16_rn(x));
}

// SiLU(gate) * up, and with kKept both sums.
template <int kRows, bool kKept, bool kAsync>
__device__ __forceinline__ void StoreGated(const GroupedGemmParams& p, Outbox<32, kAsync>& box,
                                           const Tile& tile, int n, const float (&sum)[kRows / 2]) {
  const auto pack = [](float2 x) { return PackBf16(x.x, x.y); };
#pragma unroll
  for (int begin = 0; begin < kRows; begin += kBoxRows) {
    const int64_t row = tile.row + begin;
    const int rows = tile.rows - begin;
    if (rows <= 0) break;
    if constexpr (kKept) {
      box.Open();
      FillGated(box, sum, begin, p.up_first, [&](float2 gate, float2) { return pack(gate); });
      box.Send(p.gate, row, rows, n, 1);
      box.Open();
      FillGated(box, sum, begin, p.up_first, [&](float2, float2 up) { return pack(up); });
      box.Send(p.up, row, rows, n, 2);
    }
    box.Open();
    FillGated(box, sum, begin, p.up_first, [](float2 gate, float2 up) {
      if constexpr (kKept) {
        gate = {Rounded(gate.x), Rounded(gate.y)};
        up = {Rounded(up.x), Rounded(up.y)};
      }
      return PackBf16(Silu(gate.x) * up.x, Silu(gate.y) * up.y);
    });
    box.Send(p.out, row, rows, n, 0, p.pair_order);
  }
  if constexpr (kKept) {
    box.SendRest(p.gate, tile, n, 1);
    box.SendRest(p.up, tile, n, 2);
  }
  box.SendRest(p.out, tile, n, 0);
}

// The sums, and with kSilu SiLU of the first columns as they were rounded.
template <int kRows, bool kSilu, bool kAsync>
__device__ __forceinline__ void StoreBf16(const GroupedGemmParams& p, Outbox<64, kAsync>& box,
                                          const Tile& tile, int n, const float (&sum)[kRows / 2]) {
#pragma unroll
  for (int begin = 0; begin < kRows; begin += kBoxRows) {
    const int64_t row = tile.row + begin;
    const int rows = tile.rows - begin;
    if (rows <= 0) break;
    box.Open();
    Fill(box, sum, begin, [](float x, float y) { return PackBf16(x, y); });
    box.Send(p.out, row, rows, n, 0);
    if (kSilu && n < p.silu_out.columns) {
      box.Open();
      Fill(box, sum, begin,
           [](float x, float y) { return PackBf16(Silu(Rounded(x)), Silu(Rounded(y))); });
      box.Send(p.silu_out, row, rows, n, 1);
    }
  }
  box.SendRest(p.out, tile, n, 0);
  if (kSilu && n < p.silu_out.columns) box.SendRest(p.silu_out, tile, n, 1);
}

template <int kRows>
__device__ __forceinline__ void StoreF32(const GroupedGemmParams& p, const Tile& tile, int first_n,
                                         const float (&sum)[kRows / 2]) {
  const int thread = ThreadOfTile(), lane = thread % 32;
  const int n = first_n + thread / 32 * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 8 * j + lane % 4 * 2 + i % 2, column = n + i / 2 * 8;
      if (row < tile.rows && column < p.n) {
        static_cast<float*>(p.out.data)[(tile.row + row) * p.out.stride + column] = sum[4 * j + i];
      }
    }
  }
}

}  // namespace
}  // namespace mm01::cuda
