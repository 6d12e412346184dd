// A block a multiprocessor works through one run of chunks for one tile. Blocks side by side have
// the same run for all tiles, so that its rows come from memory once and from the L2 cache after
// that:
//
//   warpgroup 0      one thread keeps four chunks on their way: 64 rows of 128 columns of a and of
//                    256 columns of b, in boxes of 64 columns
//   warpgroups 1, 2  64 of the tile's 128 rows of c each, sums in registers
//
// Both operands have the columns of c fastest, as rows lie in memory. Behind an expert's last row
// stand the next one's: those are cleared in shared memory. A run may begin and end amid a tile's
// rows, so what it has of a tile, a piece, goes to memory as the registers are, and a second kernel
// adds up the pieces of each tile.
#include "kernels/cuda/grouped_gradient.h"

#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "device/tensor_map.cuh"
#include "kernels/cuda/hopper.cuh"

namespace mm01::cuda {
namespace {

constexpr int kTileM = 128, kTileN = 256;
constexpr int kChunkRows = 64;
constexpr int kStages = 4;
constexpr int kConsumers = 2;  // warpgroups
constexpr int kConsumerThreads = 128 * kConsumers;
constexpr int kThreads = 128 + kConsumerThreads;
constexpr int kBoxColumns = 64;
constexpr int kBoxBytes = kChunkRows * kBoxColumns * 2;
constexpr int kBoxesA = kTileM / kBoxColumns, kBoxesB = kTileN / kBoxColumns;
constexpr int kStageBytes = (kBoxesA + kBoxesB) * kBoxBytes;
constexpr int kSharedBytes = 1024 + kStages * kStageBytes + 2 * kStages * 8;
static_assert(kSharedBytes <= 227 * 1024);
static_assert(kBoxesA == kConsumers);
// Of a piece, a thread's numbers by four: those of columns 8 j .. 8 j + 7 of c.
constexpr int kFours = kTileN / 8;
constexpr int kPieceFours = kFours * kConsumerThreads;
constexpr int kMaxExperts = static_cast<int>(kMaxGradientExperts);

struct Gradients {
  CUtensorMap a, b;
  float* c[kMaxExperts];
  int first_row[kMaxExperts + 1];
  int first_chunk[kMaxExperts + 1];  // of a tile
  int num_experts, tiles_m, num_tiles;
  int run, num_runs;  // chunks of a run
  int m, n;
  int64_t c_stride;
  float4* pieces;

  __host__ __device__ int num_chunks() const { return first_chunk[num_experts]; }
  // Runs and experts both ascend along the rows, so their sum is a piece's own.
  __device__ float4* PieceOf(int run_number, int tile, int expert) const {
    const int64_t piece = tile * (num_runs + num_experts) + run_number + expert;
    return pieces + piece * kPieceFours;
  }
};

// Chunks of a run that are one expert's.
struct Piece {
  int expert;
  int row, end_row;  // the first row, and the end of the expert's
  int chunks;
};

template <typename F>
__device__ __forceinline__ void ForEachPiece(const Gradients& p, F&& f) {
  int at = static_cast<int>(blockIdx.x) / p.num_tiles * p.run, expert = 0;
  const int end = min(at + p.run, p.num_chunks());
  while (at < end) {
    while (p.first_chunk[expert + 1] <= at) ++expert;
    const int chunks = min(p.first_chunk[expert + 1], end) - at;
    f(Piece{.expert = expert,
            .row = p.first_row[expert] + (at - p.first_chunk[expert]) * kChunkRows,
            .end_row = p.first_row[expert + 1],
            .chunks = chunks});
    at += chunks;
  }
}

struct Shared {
  uint8_t* stages;
  uint64_t* full;
  uint64_t* empty;
};

__device__ __forceinline__ void Produce(const Gradients& p, const Shared& s) {
  StageRing<kStages> ring;
  const int tile = static_cast<int>(blockIdx.x) % p.num_tiles;
  const int m = tile % p.tiles_m * kTileM, n = tile / p.tiles_m * kTileN;
  ForEachPiece(p, [&](const Piece& piece) {
    for (int i = 0; i < piece.chunks; ++i) {
      uint8_t* const boxes = s.stages + ring.stage * kStageBytes;
      uint64_t* const full = &s.full[ring.stage];
      const int row = piece.row + i * kChunkRows;
      BarrierWait(&s.empty[ring.stage], ring.parity ^ 1);
      BarrierExpect(full, kStageBytes);
#pragma unroll
      for (int j = 0; j < kBoxesA; ++j) {
        TmaLoad(boxes + j * kBoxBytes, &p.a, full, m + j * kBoxColumns, row);
      }
#pragma unroll
      for (int j = 0; j < kBoxesB; ++j) {
        TmaLoad(boxes + (kBoxesA + j) * kBoxBytes, &p.b, full, n + j * kBoxColumns, row);
      }
      ring.Next();
    }
  });
}

// The rows of a stage from `first` on become zero. By both warpgroups.
__device__ __forceinline__ void ClearRows(uint8_t* boxes, int first) {
  const int thread = static_cast<int>(threadIdx.x) - 128;
  for (int box = 0; box < kBoxesA + kBoxesB; ++box) {
    for (int i = first * 8 + thread; i < kChunkRows * 8; i += kConsumerThreads) {
      *reinterpret_cast<uint4*>(boxes + box * kBoxBytes + i * 16) = make_uint4(0, 0, 0, 0);
    }
  }
  ProxyFence();
  NamedBarrierSync<1, kConsumerThreads>();
}

// The stage may be filled again, as far as this warp goes.
__device__ __forceinline__ void Release(const Shared& s, int stage) {
  if (threadIdx.x % 32 == 0) BarrierArrive(&s.empty[stage]);
}

__device__ __forceinline__ void Consume(const Gradients& p, const Shared& s) {
  const int thread = static_cast<int>(threadIdx.x) - 128;
  const uint64_t a = WgmmaDescriptor(s.stages + thread / 128 * kBoxBytes);
  const uint64_t b = WgmmaDescriptor(s.stages + kBoxesA * kBoxBytes, kBoxBytes);
  StageRing<kStages> ring;
  ForEachPiece(p, [&](const Piece& piece) {
    float sum[4 * kFours];
#pragma unroll
    for (float& v : sum) v = 0.0f;
    int last = -1;
    for (int i = 0; i < piece.chunks; ++i) {
      BarrierWait(&s.full[ring.stage], ring.parity);
      const int rows = piece.end_row - piece.row - i * kChunkRows;
      if (rows < kChunkRows) ClearRows(s.stages + ring.stage * kStageBytes, rows);
      const uint64_t offset = static_cast<uint64_t>(ring.stage * (kStageBytes >> 4));
      WgmmaFence();
#pragma unroll
      for (int j = 0; j < kChunkRows / 16; ++j) {
        constexpr uint64_t kNext = 16 * 128 >> 4;  // 16 rows further
        WgmmaSs<1, 1>(sum, a + offset + kNext * j, b + offset + kNext * j, 1);
      }
      WgmmaCommit();
      WgmmaWait<1>();
      if (last >= 0) Release(s, last);
      last = ring.stage;
      ring.Next();
    }
    WgmmaWait<0>();
    WgmmaHold(sum);
    Release(s, last);
    const int block = static_cast<int>(blockIdx.x);
    float4* const to = p.PieceOf(block / p.num_tiles, block % p.num_tiles, piece.expert) + thread;
#pragma unroll
    for (int j = 0; j < kFours; ++j) {
      to[j * kConsumerThreads] =
          make_float4(sum[4 * j], sum[4 * j + 1], sum[4 * j + 2], sum[4 * j + 3]);
    }
  });
}

__global__ void __launch_bounds__(kThreads, 1) GradientPieces(const __grid_constant__ Gradients p) {
  extern __shared__ uint8_t memory[];
  const uint32_t skip = (1024 - SharedAddress(memory) % 1024) % 1024;
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(memory + kSharedBytes - 2 * kStages * 8);
  const Shared s{.stages = memory + skip, .full = barriers, .empty = barriers + kStages};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&s.full[i], 1);
      BarrierInit(&s.empty[i], kConsumers * 4);
    }
    BarrierInitFence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    RegistersDown<40>();
    if (threadIdx.x == 0) Produce(p, s);
  } else {
    RegistersUp<232>();
    Consume(p, s);
  }
}

// A block some columns of a tile of an expert, a thread what one thread had of each piece.
constexpr int kFoursOfBlock = 4;
static_assert(kFours % kFoursOfBlock == 0);

__global__ void __launch_bounds__(kConsumerThreads) AddPieces(const __grid_constant__ Gradients p) {
  const int tile = static_cast<int>(blockIdx.x) / p.num_experts;
  const int expert = static_cast<int>(blockIdx.x) % p.num_experts;
  const int begin = p.first_chunk[expert], end = p.first_chunk[expert + 1];
  if (begin == end) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = tile % p.tiles_m * kTileM + warp * 16 + lane / 4;
  const auto add = [&](int to_row, int column, float x, float y) {
    if (to_row >= p.m || column >= p.n) return;
    float2* const to = reinterpret_cast<float2*>(p.c[expert] + to_row * p.c_stride + column);
    const float2 old = *to;
    *to = make_float2(old.x + x, old.y + y);
  };
  const int first = static_cast<int>(blockIdx.y) * kFoursOfBlock;
  float4 sum[kFoursOfBlock] = {};
  for (int run = begin / p.run; run <= (end - 1) / p.run; ++run) {
    const float4* const from = p.PieceOf(run, tile, expert) + threadIdx.x;
#pragma unroll
    for (int j = 0; j < kFoursOfBlock; ++j) {
      const float4 x = from[(first + j) * kConsumerThreads];
      sum[j].x += x.x, sum[j].y += x.y, sum[j].z += x.z, sum[j].w += x.w;
    }
  }
#pragma unroll
  for (int j = 0; j < kFoursOfBlock; ++j) {
    const int column = tile / p.tiles_m * kTileN + 8 * (first + j) + lane % 4 * 2;
    add(row, column, sum[j].x, sum[j].y);
    add(row + 8, column, sum[j].z, sum[j].w);
  }
}

int64_t Tiles(int64_t size, int64_t tile) {
  return (size + tile - 1) / tile;
}

bool IsAligned(const void* p, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride_bytes % 16 == 0;
}

Gradients ParamsOf(const GroupedGradientArgs& a) {
  const auto experts = std::ssize(a.c);
  Check(0 < experts && experts <= kMaxExperts && std::ssize(a.offset) == experts + 1 &&
            a.offset.front() == 0 && a.offset.back() < int64_t{1} << 31 && a.m % 8 == 0 &&
            a.n % 8 == 0,
        "GroupedGradient takes up to 64 experts, and M and N in multiples of 8");
  Gradients p{};
  int64_t chunks = 0;
  for (int64_t e = 0; e <= experts; ++e) {
    const auto i = static_cast<size_t>(e);
    p.first_row[e] = static_cast<int>(a.offset[i]);
    p.first_chunk[e] = static_cast<int>(chunks);
    if (e == experts) break;
    Check(a.offset[i] <= a.offset[i + 1] && IsAligned(a.c[i], a.c_stride * 4),
          "GroupedGradient takes ascending rows and aligned gradients");
    p.c[e] = a.c[i];
    chunks += Tiles(a.offset[i + 1] - a.offset[i], kChunkRows);
  }
  const int64_t tiles = GradientTiles(a.m, a.n);
  Check(tiles * (Multiprocessors() + experts) < int64_t{1} << 30,
        "GroupedGradient: too many tiles");
  p.num_experts = static_cast<int>(experts);
  p.tiles_m = static_cast<int>(Tiles(a.m, kTileM));
  p.num_tiles = static_cast<int>(tiles);
  p.run = static_cast<int>(Tiles(chunks, std::max<int64_t>(1, Multiprocessors() / tiles)));
  p.num_runs = chunks == 0 ? 0 : static_cast<int>(Tiles(chunks, p.run));
  p.m = static_cast<int>(a.m);
  p.n = static_cast<int>(a.n);
  p.c_stride = a.c_stride;
  return p;
}

}  // namespace

int64_t GradientTiles(int64_t m, int64_t n) {
  return Tiles(m, kTileM) * Tiles(n, kTileN);
}

void GroupedGradient(Queue& queue, const GroupedGradientArgs& a) {
  Gradients p = ParamsOf(a);
  if (p.num_runs == 0) return;
  Check(IsAligned(a.a, 2 * a.a_stride) && IsAligned(a.b, 2 * a.b_stride),
        "GroupedGradient takes rows that begin at multiples of 16 bytes");
  const auto map = [&](const void* rows, int64_t width, int64_t stride) {
    return MakeTensorMap(rows, {.dims = {width, a.offset.back()},
                                .strides = {2 * stride},
                                .box = {kBoxColumns, kChunkRows}});
  };
  p.a = map(a.a, a.m, a.a_stride);
  p.b = map(a.b, a.n, a.b_stride);
  static const bool enlarged = [] {
    CheckCuda(cudaFuncSetAttribute(GradientPieces, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   kSharedBytes));
    return true;
  }();
  static_cast<void>(enlarged);
  Scratch scratch(queue);
  p.pieces = scratch.Get<float4>(int64_t{p.num_tiles} * (p.num_runs + p.num_experts) * kPieceFours);
  GradientPieces<<<static_cast<unsigned>(p.num_runs * p.num_tiles), kThreads, kSharedBytes,
                   queue.stream()>>>(p);
  CheckLaunch();
  AddPieces<<<dim3(static_cast<unsigned>(p.num_tiles * p.num_experts), kFours / kFoursOfBlock),
              kConsumerThreads, 0, queue.stream()>>>(p);
  CheckLaunch();
}

}  // namespace mm01::cuda
