// Schedule: both sides are packed whole, a into strips of kTileRows rows and b into panels of 16
// columns; then tiles of c are worked out one by one, all of k for each.
#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm/gemm_backward_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/gemm/tile-inl.h"

#include <algorithm>
#include <vector>

#include "kernels/gemm/gemm_backward.h"
#ifdef MM01_CUDA
#include "kernels/gemm/gemm_backward_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kBlockK = 256;  // a sum's chain
constexpr int64_t kTileM = 192 / kTileRows * kTileRows;
constexpr int64_t kTileN = 128;

struct Problem {
  int64_t m, n, k;
  View<const float, 2> a, b;
  View<float, 2> c;
  bool transpose_a, transpose_b, add;
  float* strips;  // a packed
  float* panels;  // b packed: [N / 16][k][16]

  int64_t num_panels() const { return (n + kPanel - 1) / kPanel; }
  float* Strip(int64_t row) const { return strips + row / kTileRows * kStripRoom * k; }
};

// As PackStrip, of rows that are columns of memory.
void PackColumns(const Problem& p, int64_t row, int rows) {
  float* out = p.Strip(row);
  if (rows == 1) {
    for (int64_t k = 0; k < p.k; ++k) out[k] = p.a(k, row);
    return;
  }
  for (int i = 0; i < rows; i += kSubRows, out += p.k * kSubRows) {
    const int count = std::min(kSubRows, rows - i);
    const float* in = &p.a(0, row + i);
    if (count == kSubRows) {
      const hn::CappedTag<float, kSubRows> four;
      for (int64_t k = 0; k < p.k; ++k) {
        for (size_t j = 0; j < kSubRows; j += hn::Lanes(four)) {
          hn::StoreU(hn::LoadU(four, in + k * p.a.stride[0] + j), four, out + k * kSubRows + j);
        }
      }
    } else {
      for (int64_t k = 0; k < p.k; ++k) {
        for (int j = 0; j < kSubRows; ++j) {
          out[k * kSubRows + j] = in[k * p.a.stride[0] + std::min(j, count - 1)];
        }
      }
    }
  }
}

// Panel `panel` of b^T, whose columns are rows of memory; columns that are not there are zero.
void PackTransposedPanel(const Problem& p, int64_t panel) {
  const F32 d;
  float* out = p.panels + panel * p.k * kPanel;
  const int64_t count = std::min(kPanel, p.n - panel * kPanel);
  const float* in = &p.b(panel * kPanel, 0);
  const int64_t ld = p.b.stride[0];
  int64_t k = 0;
  if (count == kPanel) {
    // Blocks of kLanes k-rows: fours of columns interleaved, then put in their places.
    float part[4 * 16];
    for (; k + kLanes <= p.k; k += kLanes) {
      for (int64_t j = 0; j < kPanel; j += 4) {
        const float* at = in + j * ld + k;
        hn::StoreInterleaved4(hn::LoadU(d, at), hn::LoadU(d, at + ld), hn::LoadU(d, at + 2 * ld),
                              hn::LoadU(d, at + 3 * ld), d, part);
        for (int64_t i = 0; i < kLanes; ++i) {
          std::memcpy(out + (k + i) * kPanel + j, part + i * 4, 4 * sizeof(float));
        }
      }
    }
  }
  for (; k < p.k; ++k) {
    for (int64_t j = 0; j < kPanel; ++j) out[k * kPanel + j] = j < count ? in[j * ld + k] : 0.0f;
  }
}

void PackPanel(const Problem& p, int64_t panel) {
  float* out = p.panels + panel * p.k * kPanel;
  const auto count = static_cast<size_t>(std::min(kPanel, p.n - panel * kPanel));
  for (int64_t k = 0; k < p.k; ++k, out += kPanel) {
    std::memcpy(out, &p.b(k, panel * kPanel), count * sizeof(float));
    std::fill(out + count, out + kPanel, 0.0f);
  }
}

// What one thread takes: some rows of a, some panels of b, or a tile of c.
struct Item {
  const Problem* problem;
  int64_t row, panel;  // -1: none
};

void Pack(const Item& item) {
  const Problem& p = *item.problem;
  if (item.panel >= 0) {
    const int64_t end = std::min(p.num_panels(), item.panel + kTileN / kPanel);
    for (int64_t panel = item.panel; panel < end; ++panel) {
      p.transpose_b ? PackTransposedPanel(p, panel) : PackPanel(p, panel);
    }
    return;
  }
  const int64_t end = std::min(p.m, item.row + kTileM);
  for (int64_t row = item.row; row < end; row += kTileRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kTileRows, p.m - row));
    if (p.transpose_a) {
      PackColumns(p, row, rows);
    } else {
      PackStrip(rows, p.k, &p.a(row, 0), p.a.stride[0], p.Strip(row));
    }
  }
}

void Multiply(const Item& item) {
  const Problem& p = *item.problem;
  const int64_t row_end = std::min(p.m, item.row + kTileM);
  const int64_t panel_end = std::min(p.num_panels(), item.panel + kTileN / kPanel);
  for (int64_t k = 0; k < p.k; k += kBlockK) {
    const int64_t num_k = std::min(kBlockK, p.k - k);
    for (int64_t panel = item.panel; panel < panel_end; panel += kTilePanels) {
      const int64_t n = std::min(kTilePanels * kPanel, p.n - panel * kPanel);
      const Panels<float> b{
          .data = p.panels + (panel * p.k + k) * kPanel, .step = kPanel, .panel = p.k * kPanel};
      for (int64_t row = item.row; row < row_end; row += kTileRows) {
        const int rows = static_cast<int>(std::min<int64_t>(kTileRows, p.m - row));
        TileStrip<kTileRows, kTilePanels>(rows, n, num_k, StripAt(p.Strip(row), rows, k),
                                          p.k * kSubRows, b, &p.c(row, panel * kPanel),
                                          p.c.stride[0], p.add || k > 0);
      }
    }
  }
}

Problem MakeProblem(const MatMulArgs& args, Scratch& scratch) {
  const auto a = args.a.As<const float, 2>(), b = args.b.As<const float, 2>();
  const auto c = args.c.As<float, 2>();
  const int64_t k = a.dim(args.transpose_a ? 0 : 1);
  Check(a.dim(args.transpose_a ? 1 : 0) == c.dim(0) &&
            b.dim(args.transpose_b ? 0 : 1) == c.dim(1) && b.dim(args.transpose_b ? 1 : 0) == k,
        "MatMul: a [M, k], b [k, N] and c [M, N] disagree");
  Problem p{c.dim(0),         c.dim(1),         k,        a,       b,      c,
            args.transpose_a, args.transpose_b, args.add, nullptr, nullptr};
  p.strips = scratch.Get<float>(PackedFloats(p.m, k));
  p.panels = scratch.Get<float>(p.num_panels() * kPanel * k);
  return p;
}

}  // namespace

void MatMulManyTarget(Queue& queue, std::span<const MatMulArgs> args) {
  Scratch scratch(queue);
  std::vector<Problem> problems;
  problems.reserve(args.size());
  for (const MatMulArgs& a : args) {
    if (a.c.size() > 0) problems.push_back(MakeProblem(a, scratch));
  }
  std::vector<Item> packs, tiles;
  for (const Problem& p : problems) {
    if (p.k == 0) {
      for (int64_t i = 0; i < p.m && !p.add; ++i) std::fill_n(&p.c(i, 0), p.n, 0.0f);
      continue;
    }
    for (int64_t row = 0; row < p.m; row += kTileM) packs.push_back({&p, row, -1});
    for (int64_t panel = 0; panel < p.num_panels(); panel += kTileN / kPanel) {
      packs.push_back({&p, -1, panel});
      for (int64_t row = 0; row < p.m; row += kTileM) tiles.push_back({&p, row, panel});
    }
  }
  queue.pool().ParallelFor(std::ssize(packs),
                           [&](int64_t i, int) { Pack(packs[static_cast<size_t>(i)]); });
  queue.pool().ParallelFor(std::ssize(tiles),
                           [&](int64_t i, int) { Multiply(tiles[static_cast<size_t>(i)]); });
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {

HWY_EXPORT(MatMulManyTarget);

void MatMulMany(Queue& queue, std::span<const MatMulArgs> problems) {
  MM01_ON_CUDA(queue, MatMulMany(queue, problems));
  HWY_DYNAMIC_DISPATCH(MatMulManyTarget)(queue, problems);
}

void MatMulManySwiGlu(Queue& queue, std::span<const MatMulArgs> problems,
                      const SwiGluForwardArgs& swiglu) {
  MM01_ON_CUDA(queue, MatMulManySwiGlu(queue, problems, swiglu));
  MatMulMany(queue, problems);
  SwiGluOf(queue, swiglu);
}

void MatMulSilu(Queue& queue, const MatMulArgs& product, const SiluForwardArgs& silu) {
  MM01_ON_CUDA(queue, MatMulSilu(queue, product, silu));
  MatMul(queue, product);
  SiluOf(queue, silu);
}

void MatMul(Queue& queue, const MatMulArgs& args) {
  MatMulMany(queue, {&args, 1});
}

}  // namespace mm01
#endif
