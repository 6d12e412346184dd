// Products of at most kFewestRows rows with int8 weights, which go from memory to the warp that
// multiplies them: nothing is shared but the sums of a tile.
//
// A block stays on its multiprocessor and takes tiles of 16 rows of w one after another, warp c
// chain c of their inputs. A warp has always asked for the next two or three steps, also across the
// end of a tile and, for the first, before the kernels ahead in the queue have ended. They come by
// cp.async into places that a lane shares with no other: it waits for its oldest copy alone. (Loads
// to registers, three steps ahead, would all be counted by one scoreboard, and a wait for the
// oldest be a wait for all.)
//
// w is the first operand of mma (16 rows), rows of x the second (8 columns). A lane (g, t) =
// (lane / 4, lane % 4) loads 16 neighbouring inputs of rows g and g + 8. The instruction wants
// inputs 2t, 2t + 1, 2t + 8, 2t + 9 of 16; as both operands are permuted alike, any four neighbours
// of a lane serve.
#include <algorithm>

#include "device/check_cuda.cuh"
#include "kernels/cuda/decode_int8.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/gemm/stream.cuh"

namespace mm01::cuda {
namespace {

constexpr int kChains = 16;  // warps of a block
constexpr int kThreads = 32 * kChains;
constexpr int kTileRows = 16;
constexpr int kStep = 128;  // inputs

struct Params {
  StreamArgs args;
  int num_steps, num_tiles;
};

// Weights are read once: they pass by the first-level cache, and come from memory in whole lines.
template <int kBytes>
__device__ __forceinline__ void CopyOnce(void* to, const int8_t* from) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(SharedAddress(to)),
                 "l"(from)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], %2;" ::"r"(SharedAddress(to)),
                 "l"(from), "n"(kBytes)
                 : "memory");
  }
}
// A scale, in the half of a word where it stands in memory; a copy takes four bytes at least.
__device__ __forceinline__ void CopyScale(void* to, const uint16_t* from) {
  const auto address = reinterpret_cast<uintptr_t>(from);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(SharedAddress(to)),
               "l"(address & ~uintptr_t{2}), "r"(static_cast<uint32_t>(2 + (address & 2)))
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most kPending groups of copies are still under way.
template <int kPending>
__device__ __forceinline__ void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// How a step of 128 inputs is spread over the four lanes of a row.
template <int kGroup>
struct Layout {
  // No instruction may take inputs of two groups.
  static constexpr int kWords = kGroup == 32 ? 2 : 4;  // four weights each, loaded at a time
  static constexpr int kLaneInputs = 4 * kWords;
  static constexpr int kSpan = 4 * kLaneInputs;  // of the lanes of a row
  static constexpr int kPieces = kStep / kSpan;
  static constexpr int kGroups = kStep / kGroup;
};

// Steps asked for. More rows of x want more of the first-level cache.
template <int kColumns>
constexpr int kAhead = kColumns == 1 ? 3 : 2;

// A step of a tile: what a lane has asked for of rows g and g + 8.
template <int kGroup>
struct Stage {
  struct alignas(Layout<kGroup>::kLaneInputs) Weights {
    uint32_t word[Layout<kGroup>::kWords];
  };
  Weights w[Layout<kGroup>::kPieces][2][32];
  uint32_t scale[Layout<kGroup>::kGroups][2][32];
};

struct Tile {
  int product, row;
};
__device__ __forceinline__ Tile TileAt(const StreamArgs& s, int at) {
  int i = 0;
  while (i + 1 < s.num_products && at >= s.product[i + 1].first_tile) ++i;
  return {i, (at - s.product[i].first_tile) * kTileRows};
}

// Asks for the steps of a warp's chain, tile after tile.
template <int kGroup>
class Loader {
 public:
  __device__ Loader(const Params& p)
      : p_(p), tile_(static_cast<int>(blockIdx.x)), step_(threadIdx.x / 32) {
    if (step_ >= p.num_steps) tile_ = p.num_tiles;  // an empty chain
    if (tile_ < p.num_tiles) BeginTile();
  }

  // One group of copies, of none behind the last step.
  __device__ __forceinline__ void Next(Stage<kGroup>& stage) {
    if (tile_ < p_.num_tiles) Ask(stage);
    CommitCopies();
  }

 private:
  __device__ __forceinline__ void Ask(Stage<kGroup>& stage) {
    using L = Layout<kGroup>;
    const int lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll
    for (int j = 0; j < L::kPieces; ++j) {
      // Inputs past the last meet zeros of x, whatever is read for them.
      const int first =
          min(step_ * kStep + j * L::kSpan + t * L::kLaneInputs, p_.args.k - L::kLaneInputs);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        CopyOnce<L::kLaneInputs>(&stage.w[j][h][lane], row_ + h * second_row_ + first);
      }
    }
#pragma unroll
    for (int i = 0; i < L::kGroups; ++i) {
      const int group = min(step_ * L::kGroups + i, p_.args.num_groups - 1);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        CopyScale(&stage.scale[i][h][lane], scale_ + h * second_scale_ + group);
      }
    }
    step_ += kChains;
    if (step_ >= p_.num_steps) {
      step_ = static_cast<int>(threadIdx.x) / 32;
      tile_ += static_cast<int>(gridDim.x);
      if (tile_ < p_.num_tiles) BeginTile();
    }
  }

  // Rows past the last read it again; their sums go nowhere.
  __device__ __forceinline__ void BeginTile() {
    const Tile tile = TileAt(p_.args, tile_);
    const StreamProduct& product = p_.args.product[tile.product];
    const int first = min(tile.row + static_cast<int>(threadIdx.x) % 32 / 4, product.n - 1);
    const int between = min(first + 8, product.n - 1) - first;
    row_ = static_cast<const int8_t*>(product.w) + static_cast<int64_t>(first) * p_.args.k;
    scale_ = reinterpret_cast<const uint16_t*>(product.scales) +
             static_cast<int64_t>(first) * p_.args.num_groups;
    second_row_ = between * p_.args.k;
    second_scale_ = between * p_.args.num_groups;
  }

  const Params& p_;
  int tile_, step_;
  const int8_t* row_;
  const uint16_t* scale_;
  int second_row_, second_scale_;  // from row g to row g + 8
};

// sum += w x of one step, for 8 kColumns rows of x. `first_scale`: where the scales of w begin, in
// halves of a word; tiles begin at even rows.
template <int kGroup, int kColumns>
__device__ __forceinline__ void MultiplyStep(const StreamArgs& s, const Stage<kGroup>& stage,
                                             int step, uint32_t first_scale,
                                             float (&sum)[kColumns][4]) {
  using L = Layout<kGroup>;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float part[kColumns][4] = {};
#pragma unroll
  for (int j = 0; j < L::kPieces; ++j) {
    const int input = step * kStep + j * L::kSpan + t * L::kLaneInputs;
    uint4 x[kColumns][L::kWords / 2];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const bool inside = 8 * i + g < s.m && input < s.k;
      const uint4* const from = reinterpret_cast<const uint4*>(s.x + (8 * i + g) * s.ldx + input);
#pragma unroll
      for (int v = 0; v < L::kWords / 2; ++v) {
        x[i][v] = {};
        if (inside) x[i][v] = from[v];
      }
    }
    const auto low = stage.w[j][0][lane], high = stage.w[j][1][lane];
#pragma unroll
    for (int word = 0; word < L::kWords; ++word) {
      const uint32_t q[2] = {low.word[word], high.word[word]};
      const uint32_t w[4] = {DecodeInt8<0>(q[0]), DecodeInt8<0>(q[1]), DecodeInt8<1>(q[0]),
                             DecodeInt8<1>(q[1])};
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const uint4& v = x[i][word / 2];
        Mma(part[i], w, word % 2 ? v.z : v.x, word % 2 ? v.w : v.y);
      }
    }
    if ((j + 1) * L::kSpan % kGroup != 0) continue;
    constexpr uint32_t kHigh = 0xffff0000u;
    const int of_step = j * L::kSpan / kGroup;
    const int group = min(step * L::kGroups + of_step, s.num_groups - 1);
    const bool is_high = (first_scale + g * s.num_groups + group) & 1;
    float by[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t word = stage.scale[of_step][h][lane];
      by[h] = __uint_as_float(is_high ? word & kHigh : word << 16);
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        sum[i][c] = fmaf(part[i][c], by[c / 2], sum[i][c]);
        part[i][c] = 0.0f;
      }
    }
  }
}

// The chains of a tile meet in shared memory, every second tile in the same place: whoever writes
// it again has passed a barrier that its readers have passed too.
template <int kColumns>
struct Sums {
  static constexpr int kPitch = kTileRows + 4;  // no two lanes of a store in one bank
  float chain[2][kChains][8 * kColumns][kPitch];
};

template <int kColumns>
__device__ __forceinline__ void FinishTile(const Params& p, int at, int turn,
                                           const float (&sum)[kColumns][4], Sums<kColumns>& sums) {
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  auto& chain = sums.chain[turn];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) chain[warp][8 * i + 2 * t + c % 2][g + c / 2 * 8] = sum[i][c];
  }
  NamedBarrierSync<1, kThreads>();
  const int row = threadIdx.x % kTileRows, token = threadIdx.x / kTileRows;
  const Tile tile = TileAt(p.args, at);
  const StreamProduct& product = p.args.product[tile.product];
  if (token < p.args.m && tile.row + row < product.n) {
    float total = chain[0][token][row];
#pragma unroll
    for (int c = 1; c < kChains; ++c) total += chain[c][token][row];
    if (product.silu) total *= Sigmoid(total);
    const int64_t out = token * product.ldo + tile.row + row;
    if (product.bf16_out) {
      Store(static_cast<bf16*>(product.out) + out, total);
    } else {
      static_cast<float*>(product.out)[out] = total;
    }
  }
  __syncwarp();
}

// What the first `asked` steps of all chains leave of the block's first two tiles comes to L2: the
// memory works on while the kernels ahead end. A warp asks for a row.
__device__ __forceinline__ void AskForTiles(const Params& p, int asked) {
  const int k = p.args.k, warp = static_cast<int>(threadIdx.x) / 32;
  static_assert(kChains == kTileRows);
  if (threadIdx.x % 32 != 0) return;
  int first = asked * kChains * kStep;
  for (int at = static_cast<int>(blockIdx.x), i = 0; i < 2 && at < p.num_tiles;
       at += static_cast<int>(gridDim.x), ++i, first = 0) {
    const Tile tile = TileAt(p.args, at);
    const StreamProduct& product = p.args.product[tile.product];
    const int row = tile.row + warp;
    if (row >= product.n || first >= k) continue;
    PrefetchToL2(static_cast<const int8_t*>(product.w) + static_cast<int64_t>(row) * k + first,
                 k - first);
  }
}

template <int kGroup, int kColumns>
struct Shared {
  Stage<kGroup> stage[kChains][kAhead<kColumns>];
  Sums<kColumns> sums;
};

template <int kGroup, int kColumns>
__global__ void __launch_bounds__(kThreads, 1) StreamInt8(const __grid_constant__ Params p) {
  static_assert(8 * kColumns * kTileRows <= kThreads);
  extern __shared__ __align__(16) uint8_t memory[];
  auto& shared = *reinterpret_cast<Shared<kGroup, kColumns>*>(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  auto& stages = shared.stage[warp];
  Loader<kGroup> loader(p);
  for (auto& stage : stages) loader.Next(stage);
  AskForTiles(p, kAhead<kColumns>);
  AwaitEarlierKernels();
  AllowNextKernel();  // which may then read what no kernel but this still writes

  int next = 0;
  for (int tile = static_cast<int>(blockIdx.x), turn = 0; tile < p.num_tiles;
       tile += static_cast<int>(gridDim.x), turn ^= 1) {
    float sum[kColumns][4] = {};
    const auto scales =
        reinterpret_cast<uintptr_t>(p.args.product[TileAt(p.args, tile).product].scales);
    const auto first_scale = static_cast<uint32_t>(scales / 2);
    for (int step = warp; step < p.num_steps; step += kChains) {
      AwaitCopies<kAhead<kColumns> - 1>();
      MultiplyStep<kGroup, kColumns>(p.args, stages[next], step, first_scale, sum);
      loader.Next(stages[next]);
      next = next + 1 == kAhead<kColumns> ? 0 : next + 1;
    }
    FinishTile<kColumns>(p, tile, turn, sum, shared.sums);
  }
}

template <int kGroup, int kColumns>
void Launch(Queue& queue, const Params& p) {
  constexpr int kBytes = sizeof(Shared<kGroup, kColumns>);
  static const bool prepared = [] {
    CheckCuda(cudaFuncSetAttribute(StreamInt8<kGroup, kColumns>,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return true;
  }();
  static_cast<void>(prepared);
  const auto blocks = static_cast<unsigned>(std::min(p.num_tiles, Multiprocessors()));
  // Of 256 KB at most 228 are shared memory. Where the 28 do not hold x, all but the block's own
  // is first-level cache.
  constexpr int kMost = 228 << 10, kReserved = 1 << 10, kLeastCache = 28 << 10;
  constexpr int kOwn = (100 * (kBytes + kReserved)) / kMost + 1;
  const bool x_fits = p.args.m * p.args.k * SizeOf(DType::kBF16) <= kLeastCache - (4 << 10);
  LaunchOverlappedAt(queue, x_fits ? int{cudaSharedmemCarveoutMaxShared} : kOwn,
                     StreamInt8<kGroup, kColumns>, blocks, kThreads, kBytes, p);
}

}  // namespace

void StreamGemmInt8(Queue& queue, const StreamArgs& args) {
  Params p{.args = args, .num_steps = (args.k + kStep - 1) / kStep, .num_tiles = 0};
  for (int i = 0; i < args.num_products; ++i) {
    StreamProduct& product = p.args.product[i];
    product.first_tile = p.num_tiles;
    p.num_tiles += (product.n + kTileRows - 1) / kTileRows;
  }
  // Either width gives the same bits. Groups that are rarely used have one.
  switch (args.group) {
    case 32:
      return Launch<32, 2>(queue, p);
    case 64:
      return Launch<64, 2>(queue, p);
    default:
      return args.m <= 8 ? Launch<128, 1>(queue, p) : Launch<128, 2>(queue, p);
  }
}

}  // namespace mm01::cuda
