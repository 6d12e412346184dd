// Weights go from memory to the registers of the warp that multiplies them, in the layout of the
// tensor core's first operand: nothing is shared but x and the sums at the end.
//
// Of 16 rows x 128 inputs a lane (g, t) = (lane / 4, lane % 4) holds rows g and g + 8, eight inputs
// from 32 j + 8 t on for each j = 0..3. The instruction wants inputs 2t, 2t + 1, 2t + 8, 2t + 9 of
// 16; as both operands are permuted alike, any eight neighbours of a lane serve for two of them.
#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/gemm/stream.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kChains = 8;
constexpr int kStep = 128;  // inputs
constexpr int kTileRows = 16;

// Weights are read once: they pass by the first-level cache, and come from memory in whole lines.
__device__ __forceinline__ uint4 LoadOnce(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ uint2 LoadOnce(const uint2* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
               : "=r"(v.x), "=r"(v.y)
               : "l"(p));
  return v;
}

__device__ __forceinline__ void Mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Bytes 2 kPair and 2 kPair + 1 of `q`, signed, as two bf16: exact. With u the lower seven bits,
// 128 + u and, of the sign, 128 or 256 are bf16 numbers that differ in the byte alone.
template <int kPair>
__device__ __forceinline__ uint32_t DecodeInt8(uint32_t q) {
  const uint32_t halves = __byte_perm(q, 0, kPair == 0 ? 0x4140 : 0x4342);
  const uint32_t magnitude = (halves & 0x007f007fu) | 0x43004300u;
  const uint32_t offset = (halves & 0x00800080u) | 0x43004300u;
  const __nv_bfloat162 value = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&magnitude),
                                       *reinterpret_cast<const __nv_bfloat162*>(&offset));
  return *reinterpret_cast<const uint32_t*>(&value);
}

// What a lane holds of one step of its warp's 16 rows. kGroup is that of int8 weights, 0 for bf16.
template <int kGroup>
struct Fragment {
  static constexpr int kGroups = kGroup > 0 ? kStep / kGroup : 1;
  using Piece = std::conditional_t<(kGroup > 0), uint2, uint4>;  // eight weights
  Piece w[4][2];
  uint16_t scale[kGroups][2];
};

// The rows of one warp.
template <int kGroup>
struct Rows {
  static constexpr bool kInt8 = kGroup > 0;
  using Element = std::conditional_t<kInt8, int8_t, bf16>;
  const Element* row;
  const bf16* scale;
  int second_row, second_scale;  // from row g to row g + 8
  int k, num_groups;

  // Rows past the last read it again; their sums go nowhere.
  __device__ Rows(const StreamArgs& s, const StreamProduct& p, int first_row, int lane)
      : k(s.k), num_groups(s.num_groups) {
    const int first = min(first_row + lane / 4, p.n - 1);
    const int between = min(first + 8, p.n - 1) - first;
    row = static_cast<const Element*>(p.w) + static_cast<int64_t>(first) * k + lane % 4 * 8;
    scale = p.scales + static_cast<int64_t>(first) * num_groups;
    second_row = between * k;
    second_scale = between * num_groups;
  }

  __device__ __forceinline__ void Load(Fragment<kGroup>& f, int step, int lane) const {
    using Piece = typename Fragment<kGroup>::Piece;
    const int first = step * kStep;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool inside = first + 32 * j + lane % 4 * 8 < k;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        f.w[j][h] = {};
        if (inside) {
          f.w[j][h] =
              LoadOnce(reinterpret_cast<const Piece*>(row + h * second_row + first + 32 * j));
        }
      }
    }
    if constexpr (kInt8) {
#pragma unroll
      for (int i = 0; i < f.kGroups; ++i) {
        const int group = step * f.kGroups + i;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          f.scale[i][h] = group < num_groups ? scale[h * second_scale + group].bits : 0;
        }
      }
    }
  }
};

// sum += w x of one step. `x(tile, j)` gives inputs 32 j + 8 t .. of row 8 tile + g.
template <int kGroup, int kTiles, typename X>
__device__ __forceinline__ void MultiplyStep(const Fragment<kGroup>& f, float (&sum)[kTiles][4],
                                             X&& x) {
  constexpr bool kInt8 = kGroup > 0;
  [[maybe_unused]] float part[kInt8 ? kTiles : 1][4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    uint32_t a[2][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if constexpr (kInt8) {
        a[0][h] = DecodeInt8<0>(f.w[j][h].x);
        a[0][2 + h] = DecodeInt8<1>(f.w[j][h].x);
        a[1][h] = DecodeInt8<0>(f.w[j][h].y);
        a[1][2 + h] = DecodeInt8<1>(f.w[j][h].y);
      } else {
        a[0][h] = f.w[j][h].x;
        a[0][2 + h] = f.w[j][h].y;
        a[1][h] = f.w[j][h].z;
        a[1][2 + h] = f.w[j][h].w;
      }
    }
    uint4 b[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) b[i] = x(i, j);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      float(&c)[4] = kInt8 ? part[kInt8 ? i : 0] : sum[i];
      Mma(c, a[0][0], a[0][1], a[0][2], a[0][3], b[i].x, b[i].y);
      Mma(c, a[1][0], a[1][1], a[1][2], a[1][3], b[i].z, b[i].w);
    }
    if constexpr (kInt8) {
      if ((j + 1) * 32 % kGroup != 0) continue;
      const auto& scale = f.scale[j * 32 / kGroup];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const float by = __uint_as_float(static_cast<uint32_t>(scale[c / 2]) << 16);
          sum[i][c] = fmaf(part[i][c], by, sum[i][c]);
          part[i][c] = 0.0f;
        }
      }
    }
  }
}

__device__ __forceinline__ const StreamProduct& ProductOf(const StreamArgs& s, int block) {
  int i = 0;
  while (i + 1 < s.num_products && block >= s.product[i + 1].first_block) ++i;
  return s.product[i];
}

__device__ __forceinline__ void Finish(const StreamProduct& p, int row, int token, float sum) {
  if (row >= p.n) return;
  if (p.silu) sum *= Sigmoid(sum);
  const int64_t at = token * p.ldo + row;
  if (p.bf16_out) {
    Store(static_cast<bf16*>(p.out) + at, sum);
  } else {
    static_cast<float*>(p.out)[at] = sum;
  }
}

// How many blocks share a multiprocessor: what registers allow without spilling.
constexpr int FewBlocks(int group, int tiles) {
  if (group == 128 && tiles == 1) return 3;
  return group == 32 ? 1 : 2;
}
constexpr int ManyBlocks(int group, int tiles) {
  return group == 0 || (group == 128 && tiles == 4) ? 2 : 1;
}

// Up to 8 kTiles tokens. A block owns 16 rows of w, warp c chain c. While a warp multiplies one
// step it has asked for the next.
template <int kGroup, int kTiles>
__global__ void __launch_bounds__(kThreads, FewBlocks(kGroup, kTiles))
    StreamFew(const __grid_constant__ StreamArgs s) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const StreamProduct& p = ProductOf(s, static_cast<int>(blockIdx.x));
  const int first_row = (static_cast<int>(blockIdx.x) - p.first_block) * kTileRows;
  const Rows<kGroup> rows(s, p, first_row, lane);
  const int num_steps = (s.k + kStep - 1) / kStep;

  float sum[kTiles][4] = {};
  const bf16* x = s.x + g * s.ldx + t * 8;
  const auto multiply = [&](const Fragment<kGroup>& w, int step) {
    const int first = step * kStep;
    MultiplyStep<kGroup, kTiles>(w, sum, [&](int i, int j) {
      uint4 b = {};
      if (8 * i + g < s.m && first + 32 * j + 8 * t < s.k) {
        b = *reinterpret_cast<const uint4*>(x + 8 * i * s.ldx + first + 32 * j);
      }
      return b;
    });
  };
  Fragment<kGroup> even, odd;
  int step = warp;
  if (step < num_steps) rows.Load(even, step, lane);
  if (step + kChains < num_steps) rows.Load(odd, step + kChains, lane);
  AllowNextKernel();
  AwaitEarlierKernels();
  while (step < num_steps) {
    multiply(even, step);
    if (step + 2 * kChains < num_steps) rows.Load(even, step + 2 * kChains, lane);
    step += kChains;
    if (step >= num_steps) break;
    multiply(odd, step);
    if (step + 2 * kChains < num_steps) rows.Load(odd, step + 2 * kChains, lane);
    step += kChains;
  }

  constexpr int kPitch = 20;  // no two lanes of a store in one bank
  __shared__ float chain[kChains][8 * kTiles][kPitch];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) chain[warp][8 * i + 2 * t + c % 2][g + c / 2 * 8] = sum[i][c];
  }
  __syncthreads();
  const int row = threadIdx.x % kTileRows, token = threadIdx.x / kTileRows;
  if (token >= s.m || token >= 8 * kTiles) return;
  float total = chain[0][token][row];
#pragma unroll
  for (int c = 1; c < kChains; ++c) total += chain[c][token][row];
  Finish(p, first_row + row, token, total);
}

// More tokens. A cluster of eight blocks owns 128 rows of w and 8 kTiles tokens, block c chain c, a
// warp 16 rows. The block's part of x comes through shared memory in three stages; chains meet over
// the cluster. Clusters that want the same weights stand side by side, so that these come from
// memory once.
constexpr int kWideRows = kWarps * kTileRows;
constexpr int kStages = 3;
constexpr int kSumPitch = kWideRows + 4;  // no two lanes of a store in one bank

constexpr size_t WideSharedBytes(int tokens) {
  return std::max(size_t{kStages * kStep * 2}, sizeof(float) * kSumPitch) *
         static_cast<size_t>(tokens);
}

__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ float4 LoadFromCluster(uint32_t address, int rank) {
  float4 v;
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n}\n"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(address), "r"(rank)
      : "memory");
  return v;
}

// Volatile: the compiler would fetch far ahead and run out of registers.
__device__ __forceinline__ uint4 LoadShared(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// Where 16 bytes from input 8 `piece` of a stage's row `token` stand: two rows read at once fall
// into different banks.
__device__ __forceinline__ uint32_t StageOffset(int token, int piece) {
  return static_cast<uint32_t>(token * kStep * 2 + (piece ^ ((token & 1) << 2)) * 16);
}

template <int kGroup, int kTiles>
__global__ void __cluster_dims__(kChains, 1, 1)
    __launch_bounds__(kThreads, ManyBlocks(kGroup, kTiles))
        StreamMany(const __grid_constant__ StreamArgs s) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr int kTokens = 8 * kTiles;
  constexpr int kStageBytes = kTokens * kStep * 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int rank = static_cast<int>(ClusterRank());
  const int token_blocks = (s.m + kTokens - 1) / kTokens;
  const int cluster = static_cast<int>(blockIdx.x) / kChains;
  const int block = cluster / token_blocks, first_token = cluster % token_blocks * kTokens;
  const int tokens = min(kTokens, s.m - first_token);
  const StreamProduct& p = ProductOf(s, block);
  const int first_row = (block - p.first_block) * kWideRows;
  const Rows<kGroup> rows(s, p, first_row + warp * kTileRows, lane);
  const int num_steps = (s.k + kStep - 1) / kStep;
  const int count = (num_steps - rank + kChains - 1) / kChains;  // of this block; at least 0

  const auto copy_x = [&](int i) {
    if (i < count) {
      const int first = (rank + i * kChains) * kStep;
      const uint32_t stage = SharedAddress(shared + i % kStages * kStageBytes);
#pragma unroll
      for (int at = threadIdx.x; at < kTokens * 16; at += kThreads) {
        const int token = at / 16, piece = at % 16;
        const bool inside = token < tokens && first + 8 * piece < s.k;
        const bf16* from = inside ? s.x + (first_token + token) * s.ldx + first + 8 * piece : s.x;
        CopyAsync16(stage + StageOffset(token, piece), from, inside);
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  float sum[kTiles][4] = {};
  Fragment<kGroup> even, odd;
  const auto turn = [&](const Fragment<kGroup>& now, Fragment<kGroup>& next, int i) {
    if (i + 1 < count) rows.Load(next, rank + (i + 1) * kChains, lane);
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();  // stage i has come, and nobody reads stage i - 1 any more
    copy_x(i + 2);
    const uint32_t stage = SharedAddress(shared + i % kStages * kStageBytes);
    MultiplyStep<kGroup, kTiles>(now, sum, [&](int tile, int j) {
      return LoadShared(stage + StageOffset(8 * tile + g, 4 * j + t));
    });
  };

  if (count > 0) rows.Load(even, rank, lane);
  AllowNextKernel();
  AwaitEarlierKernels();
  copy_x(0);
  copy_x(1);
  for (int i = 0; i < count; i += 2) {
    turn(even, odd, i);
    if (i + 1 < count) turn(odd, even, i + 1);
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();

  float* const chain = reinterpret_cast<float*>(shared);  // [token][row]
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      chain[(8 * i + 2 * t + c % 2) * kSumPitch + warp * kTileRows + g + c / 2 * 8] = sum[i][c];
    }
  }
  ClusterSync();
  // Block c adds up 16 of the 128 rows.
  for (int at = threadIdx.x; at < tokens * 4; at += kThreads) {
    const int token = at / 4, row = rank * kTileRows + at % 4 * 4;
    const uint32_t address = SharedAddress(chain + token * kSumPitch + row);
    float4 total = LoadFromCluster(address, 0);
#pragma unroll
    for (int c = 1; c < kChains; ++c) {
      const float4 v = LoadFromCluster(address, c);
      total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
    }
    Finish(p, first_row + row, first_token + token, total.x);
    Finish(p, first_row + row + 1, first_token + token, total.y);
    Finish(p, first_row + row + 2, first_token + token, total.z);
    Finish(p, first_row + row + 3, first_token + token, total.w);
  }
  __syncwarp();
  ClusterSync();  // the others may still be reading this block's sums
}

// Gives each product its blocks and returns how many there are.
int Distribute(StreamArgs& s, int rows_a_block) {
  int blocks = 0;
  for (int i = 0; i < s.num_products; ++i) {
    s.product[i].first_block = blocks;
    blocks += (s.product[i].n + rows_a_block - 1) / rows_a_block;
  }
  return blocks;
}

template <int kGroup, int kTiles>
void LaunchFew(Queue& queue, StreamArgs& s) {
  const int blocks = Distribute(s, kTileRows);
  LaunchOverlapped(queue, StreamFew<kGroup, kTiles>, dim3(static_cast<unsigned>(blocks)), kThreads,
                   0, s);
}

template <int kGroup, int kTiles>
void LaunchMany(Queue& queue, StreamArgs& s) {
  const int token_blocks = (s.m + 8 * kTiles - 1) / (8 * kTiles);
  const int blocks = Distribute(s, kWideRows) * token_blocks * kChains;
  constexpr size_t kBytes = WideSharedBytes(8 * kTiles);
  static const bool enlarged = [] {
    CheckCuda(cudaFuncSetAttribute(StreamMany<kGroup, kTiles>,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return true;
  }();
  static_cast<void>(enlarged);
  LaunchOverlapped(queue, StreamMany<kGroup, kTiles>, dim3(static_cast<unsigned>(blocks)), kThreads,
                   kBytes, s);
}

// Any number of tiles that is enough gives the same bits; kinds that are rarely used have few.
template <int kGroup>
void Launch(Queue& queue, StreamArgs& s) {
  constexpr bool kCommon = kGroup == 0 || kGroup == 128;
  if constexpr (kCommon) {
    if (s.m <= 8) return LaunchFew<kGroup, 1>(queue, s);
    if (s.m > 32) return LaunchMany<kGroup, 8>(queue, s);
  }
  if (s.m <= 16) return LaunchFew<kGroup, 2>(queue, s);
  LaunchMany<kGroup, 4>(queue, s);
}

}  // namespace

void StreamGemm(Queue& queue, StreamArgs s) {
  Check(0 < s.m && s.m <= 128 && s.k % 8 == 0 && s.num_products <= kMostStreamProducts,
        "StreamGemm does not take these shapes");
  switch (s.group) {
    case 0:
      return Launch<0>(queue, s);
    case 32:
      return Launch<32>(queue, s);
    case 64:
      return Launch<64>(queue, s);
    case 128:
      return Launch<128>(queue, s);
    default:
      Fail("int8 weights have groups of 32, 64 or 128");
  }
}

}  // namespace mm01::cuda
