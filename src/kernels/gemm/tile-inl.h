// The inner kernels of every matrix product on the CPU, compiled once for each SIMD target.
//
//   c[i, n] = sum over k ascending of a[i, k] b[k, n]
//
// One accumulator holds one output, and k runs in order from zero: a row's bits do not depend on
// how many rows are multiplied with it, on the target's vector width, or on which tile it falls
// into. Included through hwy/foreach_target.h, so there is no include guard of the usual kind.
#if defined(MM01_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MM01_TILE_INL_H_
#undef MM01_TILE_INL_H_
#else
#define MM01_TILE_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/gemm/weight.h"
#include "kernels/vector-inl.h"
#include "tensor/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows and panels of the largest tile: 24 accumulators of 32 registers, or 12 of 16.
inline constexpr int kTileRows = kLanes == 16 ? 12 : (kLanes == 8 ? 6 : 3);
inline constexpr int kTilePanels = kLanes == 16 ? 2 : 1;

// A product of few rows waits for memory: up to kStreamRows rows, this many panels are read side by
// side.
inline constexpr int kStreamRows = kTileRows < 4 ? kTileRows : 4;
inline constexpr int kStreamPanels = kLanes == 16 ? 4 : 2;

// Where b comes from: panels of 16 columns, `panel` elements apart; k-rows `step` elements apart.
// Sums are cut into chains of `chain` k-rows. With scales, b stands for itself times the scale of
// its column and chain.
template <typename T>
struct Panels {
  const T* data;
  int64_t step;
  int64_t panel;
  int64_t chain = int64_t{1} << 62;
  const bf16* scales = nullptr;  // [chain][16]
  int64_t scale_panel = 0;       // between the scales of neighbouring panels
  // For prefetching: bytes from what is read to what will be, and how many more they are for the
  // last `ahead` bytes of a panel.
  int64_t ahead = 1024;
  int64_t jump = 0;

  void NextPanels(int64_t n) {
    data += n * panel;
    if (scales) scales += n * scale_panel;
  }
};

// Rows of the left matrix are packed four at a time: element (i, k) of a strip stands at
// [i / 4][k][i % 4], `sub` floats between fours. A strip of one row is that row as it is.
inline constexpr int kSubRows = 4;
inline constexpr int kStripRoom = (kTileRows + kSubRows - 1) / kSubRows * kSubRows;

// Where k-row `k` of a packed strip of `rows` rows begins.
HWY_INLINE const float* StripAt(const float* strip, int rows, int64_t k) {
  return strip + (rows == 1 ? k : k * kSubRows);
}

// Adds up k-rows of the NP panels that begin at at[0], at[1], ..., and moves all pointers on.
template <int MR, int NP, typename T>
HWY_INLINE void AddRows(int64_t num_k, int64_t step, const float* HWY_RESTRICT& a, int64_t sub,
                        const T** at, VF (&sum)[MR][NP * kVecs]) {
  constexpr int kWide = NP * kVecs;
  const F32 d;
  MM01_UNROLL(4)
  for (int64_t k = 0; k < num_k; ++k) {
    VF column[kWide];
    MM01_UNROLL(16)
    for (int j = 0; j < kWide; ++j) {
      column[j] = LoadAsF32(at[j / kVecs] + k * step + j % kVecs * kLanes);
    }
    MM01_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      const VF x = hn::Set(d, a[(MR == 1 ? k : k * kSubRows) + i / kSubRows * sub + i % kSubRows]);
      MM01_UNROLL(16)
      for (int j = 0; j < kWide; ++j) sum[i][j] = hn::MulAdd(x, column[j], sum[i][j]);
    }
  }
  a += num_k * (MR == 1 ? 1 : kSubRows);
  MM01_UNROLL(16)
  for (int p = 0; p < NP; ++p) at[p] += num_k * step;
}

// Too many streams at a time for the processor's own prefetching.
template <int NP, typename T>
HWY_INLINE void PrefetchPanels(const T* const* at, int64_t ahead) {
  MM01_UNROLL(16)
  for (int p = 0; p < NP; ++p) hwy::Prefetch(reinterpret_cast<const std::byte*>(at[p]) + ahead);
}

// c[MR, NP * 16] = or += the sum over k, times the scales where b has them. Up to kStreamRows rows
// it takes any number of chains; more rows have no registers left for a loop over them.
template <int MR, int NP, typename T>
HWY_INLINE void Tile(int64_t num_k, const float* HWY_RESTRICT a, int64_t sub, const Panels<T>& b,
                     float* HWY_RESTRICT c, int64_t ldc, bool add) {
  constexpr int kWide = NP * kVecs;
  constexpr bool kManyChains = MR <= kStreamRows;
  // k-rows of a panel in a line of memory, where they are neighbours.
  constexpr int64_t kLine = 64 / (kPanel * static_cast<int64_t>(sizeof(T)));
  const F32 d;
  const T* at[NP];
  MM01_UNROLL(16)
  for (int p = 0; p < NP; ++p) at[p] = b.data + p * b.panel;
  const bf16* scales = b.scales;
  const int64_t last = num_k - b.ahead * kLine / 64;  // what is read ahead from here is the next

  for (int64_t k = 0; k < num_k;) {
    const int64_t end = kManyChains && num_k - k > b.chain ? k + b.chain : num_k;
    VF sum[MR][kWide];
    MM01_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      MM01_UNROLL(16)
      for (int j = 0; j < kWide; ++j) sum[i][j] = hn::Zero(d);
    }
    if constexpr (NP == kStreamPanels) {
      if (b.step == kPanel) {
        for (; k + kLine <= end; k += kLine) {
          PrefetchPanels<NP>(at, k < last ? b.ahead : b.ahead + b.jump);
          AddRows<MR, NP>(kLine, kPanel, a, sub, at, sum);
        }
      } else {
        for (; k < end; ++k) {
          PrefetchPanels<NP>(at, b.ahead);
          AddRows<MR, NP>(1, b.step, a, sub, at, sum);
        }
      }
    }
    for (; k < end; ++k) AddRows<MR, NP>(1, b.step, a, sub, at, sum);

    MM01_UNROLL(16)
    for (int j = 0; j < kWide; ++j) {
      VF scale = hn::Zero(d);
      if (scales) {
        const bf16* from = scales + j / kVecs * b.scale_panel;
        scale = LoadAsF32(from + j % kVecs * kLanes);
        if (NP == kStreamPanels) hwy::Prefetch(from + NP * b.scale_panel);
      }
      MM01_UNROLL(16)
      for (int i = 0; i < MR; ++i) {
        float* out = c + i * ldc + j * kLanes;
        if (scales) {
          const VF old = add ? hn::LoadU(d, out) : hn::Zero(d);
          hn::StoreU(hn::MulAdd(scale, sum[i][j], old), d, out);
        } else {
          hn::StoreU(add ? hn::Add(hn::LoadU(d, out), sum[i][j]) : sum[i][j], d, out);
        }
      }
    }
    if constexpr (!kManyChains) return;
    add = true;
    if (scales) scales += kPanel;
  }
}

template <typename T>
using TileFn = void (*)(int64_t, const float*, int64_t, const Panels<T>&, float*, int64_t, bool);

template <int NP, typename T, int... MR>
HWY_INLINE TileFn<T> PickTile(int rows, std::integer_sequence<int, MR...>) {
  static constexpr TileFn<T> kTable[] = {&Tile<MR + 1, NP, T>...};
  return kTable[rows - 1];
}

// c[rows, n] = or += a b for rows <= kMaxRows. Whole panels are computed; what lies beyond n is
// cut.
template <int kMaxRows, int kPanels, typename T>
HWY_INLINE void TileStrip(int rows, int64_t n, int64_t num_k, const float* a, int64_t sub,
                          Panels<T> b, float* c, int64_t ldc, bool add) {
  using Rows = std::make_integer_sequence<int, kMaxRows>;
  const TileFn<T> wide = PickTile<kPanels, T>(rows, Rows());
  const TileFn<T> narrow = PickTile<1, T>(rows, Rows());
  int64_t done = 0;
  for (; n - done >= kPanels * kPanel; done += kPanels * kPanel) {
    wide(num_k, a, sub, b, c + done, ldc, add);
    b.NextPanels(kPanels);
  }
  for (; n - done >= kPanel; done += kPanel) {
    narrow(num_k, a, sub, b, c + done, ldc, add);
    b.NextPanels(1);
  }
  if (done == n) return;
  float cut[kMaxRows * kPanel];
  for (int i = 0; add && i < rows; ++i) {
    for (int64_t j = 0; j < n - done; ++j) cut[i * kPanel + j] = c[i * ldc + done + j];
  }
  narrow(num_k, a, sub, b, cut, kPanel, add);
  for (int i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < n - done; ++j) c[i * ldc + done + j] = cut[i * kPanel + j];
  }
}

// Packs `rows` <= kTileRows rows of x (row stride ldx) as one strip, fours num_k * 4 floats apart.
HWY_INLINE void PackStrip(int rows, int64_t num_k, const float* x, int64_t ldx, float* strip) {
  if (rows == 1) {
    std::memcpy(strip, x, static_cast<size_t>(num_k) * sizeof(float));
    return;
  }
  const F32 d;
  for (int i = 0; i < rows; i += kSubRows) {
    // Fewer than four rows left: the last is read again in place of those that are not there.
    const float* row[kSubRows];
    for (int j = 0; j < kSubRows; ++j) row[j] = x + (i + j < rows ? i + j : rows - 1) * ldx;
    float* out = strip + i * num_k;
    int64_t k = 0;
    for (; k + kLanes <= num_k; k += kLanes) {
      hn::StoreInterleaved4(hn::LoadU(d, row[0] + k), hn::LoadU(d, row[1] + k),
                            hn::LoadU(d, row[2] + k), hn::LoadU(d, row[3] + k), d,
                            out + k * kSubRows);
    }
    for (; k < num_k; ++k) {
      for (int j = 0; j < kSubRows; ++j) out[k * kSubRows + j] = row[j][k];
    }
  }
}

// Room for m rows packed in strips of kTileRows.
constexpr int64_t PackedFloats(int64_t m, int64_t num_k) {
  return (m + kTileRows - 1) / kTileRows * kStripRoom * num_k;
}

HWY_INLINE void PackRowsOf(int64_t m, int64_t num_k, const float* x, int64_t ldx, float* packed) {
  for (int64_t i = 0; i < m; i += kTileRows) {
    const int rows = static_cast<int>(m - i < kTileRows ? m - i : kTileRows);
    PackStrip(rows, num_k, x + i * ldx, ldx, packed + i / kTileRows * kStripRoom * num_k);
  }
}

// c[m, n] = or += a b for matrices that stay in cache, a packed by PackRowsOf, sums over all k in
// one chain.
template <typename T>
HWY_INLINE void PackedGemm(int64_t m, int64_t n, int64_t num_k, const float* packed,
                           const Panels<T>& b, float* c, int64_t ldc, bool add) {
  if (m <= kStreamRows) {
    TileStrip<kStreamRows, kStreamPanels>(static_cast<int>(m), n, num_k, packed, num_k * kSubRows,
                                          b, c, ldc, add);
    return;
  }
  for (int64_t i = 0; i < m; i += kTileRows) {
    const int rows = static_cast<int>(m - i < kTileRows ? m - i : kTileRows);
    TileStrip<kTileRows, kTilePanels>(rows, n, num_k, packed + i / kTileRows * kStripRoom * num_k,
                                      num_k * kSubRows, b, c + i * ldc, ldc, add);
  }
}

// The same for a row-major with stride lda; `packed` has room for PackedFloats(m, num_k).
template <typename T>
HWY_INLINE void SmallGemm(int64_t m, int64_t n, int64_t num_k, const float* a, int64_t lda,
                          const Panels<T>& b, float* c, int64_t ldc, bool add, float* packed) {
  PackRowsOf(m, num_k, a, lda, packed);
  PackedGemm(m, n, num_k, packed, b, c, ldc, add);
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#endif  // include guard
