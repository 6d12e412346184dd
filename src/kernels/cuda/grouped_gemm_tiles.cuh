// What the grouped products' kernel works on: its parameters, the room it has, and its tiles in
// order.
#pragma once

#include <cuda_runtime.h>

#include "device/tensor_map.cuh"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/hopper.cuh"

namespace mm01::cuda {

inline constexpr int kMaxUnits = 10;  // units of 32 rows of x in a tile

// Where outputs go, [R, columns]; of bf16 also as boxes of kBoxRows rows, if `map` is.
struct Target {
  void* data = nullptr;
  int64_t stride = 0;
  int columns = 0;
  CUtensorMap map{};
};

struct GroupedGemmParams {
  CUtensorMap w;
  CUtensorMap x[kMaxUnits];  // boxes of 16, 32, ... 160 rows: half a tile
  const RowGroup* groups;
  const int32_t* num_groups;
  int64_t num_rows;       // if there are no groups
  const bf16* scales[2];  // int8: of the first and the second eight of 16 rows of a tile
  int64_t scale_rows;     // of all experts together
  int64_t num_scales;     // a row
  int log_group;
  int n, k;
  int expert_rows;  // of w, from an expert's first to the next one's
  bool up_first;    // the tile's first eight rows are w_up's
  bool silu;
  bool pair_order;
  Target out;
  Target gate, up;     // kGatedKept: the sums
  Target silu_out;     // kBf16Silu: SiLU of the first columns
  int32_t* num_taken;  // tiles beyond the first of each cluster; zero before the kernel
};

// Each compiled in a file of its own.
void LaunchBf16Gemm(Queue& queue, const GroupedGemmParams& params, bool gated, DType out_type,
                    int64_t num_tiles);
void LaunchInt8Gemm(Queue& queue, const GroupedGemmParams& params, bool gated, int64_t num_tiles);
void LaunchTransposedGemm(Queue& queue, const GroupedGemmParams& params, int64_t num_tiles);
void LaunchKeptGemm(Queue& queue, const GroupedGemmParams& params, int64_t num_tiles);
void LaunchSiluGemm(Queue& queue, const GroupedGemmParams& params, int64_t num_tiles);

namespace {

enum class Store { kGated, kBf16, kF32, kGatedKept, kBf16Silu };
template <Store kStore>
constexpr bool kIsGated = kStore == Store::kGated || kStore == Store::kGatedKept;

constexpr int kTileW = 128;  // rows of w a block
constexpr int kUnit = 32;    // rows of x are padded to this
constexpr int kStepK = 64;   // inputs a stage
constexpr int kStages = 4;
constexpr int kConsumers = 2;           // warpgroups
constexpr int kBandBytes = 15'000'000;  // of x that tiles side by side read
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kBytesStaging = 8192;            // of a warpgroup, for sums on their way out
constexpr int kBoxRows = 64;                   // of x, whose outputs leave together
constexpr int kReleases = kConsumers * 4 * 2;  // warps of both blocks give a stage back

struct Tile {
  int expert, pair;  // pair: of neighbouring tiles of w
  int64_t row;       // the first row of x
  int rows, units;   // no units: there are no more tiles
};

constexpr int kBytesControl = kStages * (3 * 8 + static_cast<int>(sizeof(Tile)) + 4);

// int8 weights need registers that sums would take.
template <bool kInt8>
constexpr int kMostUnits = kInt8 ? 9 : kMaxUnits;
template <bool kInt8>
constexpr int kBytesW = kTileW* kStepK*(kInt8 ? 1 : 2);
template <bool kInt8>
constexpr int kBytesX = kMostUnits<kInt8>* kUnit* kStepK * 2;
template <bool kInt8>
constexpr int kBytesStage = kBytesW<kInt8> + kBytesX<kInt8>;
// bf16 weights take as much as the staging, which is where the last ones of a tile were.
template <bool kInt8>
constexpr int kSharedBytes = 1024 + kStages* kBytesStage<kInt8> +
                             (kInt8 ? kConsumers * kBytesStaging : 0) + kBytesControl;
static_assert(kBytesW<false> == kConsumers * kBytesStaging);
static_assert(kSharedBytes<false> <= 227 * 1024 && kSharedBytes<true> <= 227 * 1024);

// Tiles are made for 1, 2 and 4 to 10 units; int8 has no registers for 7.
template <bool kInt8>
__host__ __device__ constexpr int FitUnits(int units) {
  return units == 3 || (kInt8 && units == 7) ? units + 1 : units;
}

// All tiles, numbered. A group's tiles of x go side by side through the same weights, no more of
// them at a time than a band, which stays in the L2 cache.
template <bool kInt8>
class TileWalk {
 public:
  __device__ TileWalk(const GroupedGemmParams& p, int rows_w)
      : p_(p), pairs_((p.n + 2 * rows_w - 1) / (2 * rows_w)) {
    num_groups_ = p.groups ? *p.num_groups
                           : static_cast<int>((p.num_rows + kMaxGroupRows - 1) / kMaxGroupRows);
    if (num_groups_ > 0) Load();
  }

  // Tile `id`, which is larger than that of the call before; false if there are not so many.
  __device__ bool Find(int id, Tile& tile) {
    while (at_ < num_groups_ && id - first_ >= pairs_ * tiles_) {
      first_ += pairs_ * tiles_;
      if (++at_ < num_groups_) Load();
    }
    if (at_ >= num_groups_) return false;
    const int band = (id - first_) / (pairs_ * band_) * band_, width = min(band_, tiles_ - band);
    const int in_band = id - first_ - pairs_ * band, i = band + in_band % width;
    const int begin = BeginOf(i), end = BeginOf(i + 1);
    tile.pair = in_band / width;
    tile.expert = group_.expert;
    tile.row = group_.first + begin * kUnit;
    tile.rows = min((end - begin) * kUnit, group_.rows - begin * kUnit);
    tile.units = FitUnits<kInt8>(end - begin);
    return true;
  }

 private:
  __device__ void Load() {
    if (p_.groups) {
      group_ = p_.groups[at_];
    } else {
      const int64_t first = at_ * kMaxGroupRows;
      group_ = {0, static_cast<int>(min(p_.num_rows - first, kMaxGroupRows)), first};
    }
    units_ = (group_.rows + kUnit - 1) / kUnit;
    tiles_ = (units_ + 1) / 8;
    if (units_ > kMostUnits<kInt8> * tiles_) ++tiles_;
    const int most = max(kBandBytes / (8 * kUnit * 2 * p_.k), 1);
    const int num_bands = (tiles_ + most - 1) / most;
    band_ = (tiles_ + num_bands - 1) / num_bands;
  }

  // The first unit of the group's tile i. 8 units are cheapest a row, as the most that one
  // instruction takes; then the most that a tile takes. Fewer than 8 are of about the same size.
  __device__ int BeginOf(int i) const {
    const int beyond = units_ - 8 * tiles_;
    if (beyond >= 0) return 8 * i + min((kMostUnits<kInt8> - 8) * i, beyond);
    return i * (units_ / tiles_) + min(i, units_ % tiles_);
  }

  const GroupedGemmParams& p_;
  int pairs_;
  int num_groups_ = 0;
  int at_ = 0;     // the group
  int first_ = 0;  // the number of its first tile
  RowGroup group_;
  int units_ = 0, tiles_ = 1;  // of the group's rows
  int band_ = 1;               // tiles; the last band may have fewer
};

}  // namespace
}  // namespace mm01::cuda
