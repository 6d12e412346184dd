// Schedule: few rows stream w from memory straight into the multiply (GEMV); many rows are packed
// once, and w's panels are decoded block by block into the cache, where a tile of rows shares them.
#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm/gemm_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/gemm/tile-inl.h"

#include <algorithm>
#include <vector>

#include "kernels/activation/activation.h"
#include "kernels/gemm/gemm.h"
#ifdef MM01_CUDA
#include "kernels/gemm/gemm_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kBlockK = 256;  // a sum's chain; 256 x 32 floats fill the first-level cache
constexpr int64_t kTileM = 192;   // rows that share a decoded block: 192 x 256 floats in L2
constexpr int64_t kTileN = 256;

struct Problem {
  const float* x;
  int64_t ldx;
  int64_t m;
  const Weight* w;
  float* out;
  int64_t ldo;
  float* packed;  // strips of kTileRows rows; x itself for one row
  bool packs;     // false where x needs no packing or another problem packs it

  bool streams() const { return m <= kStreamRows; }
};

struct Item {
  const Problem* problem;
  int64_t row, rows;      // rows of x
  int64_t panel, panels;  // panels of w
};

// How much of k one chain of additions covers: scales are applied between groups.
int64_t ChainLength(const Weight& w) {
  return w.type().group ? w.type().group : kBlockK;
}

template <typename T>
Panels<T> PanelsAt(const Weight& w, int64_t panel, int64_t k) {
  Panels<T> b{.data = static_cast<const T*>(w.data()) + (panel * w.k() + k) * kPanel,
              .step = kPanel,
              .panel = w.k() * kPanel,
              .chain = ChainLength(w)};
  if constexpr (std::is_same_v<T, int8_t>) {
    b.scales = w.scales() + (panel * w.num_groups() + k / w.type().group) * kPanel;
    b.scale_panel = w.num_groups() * kPanel;
  }
  return b;
}

int64_t Columns(const Item& item) {
  return std::min(item.panels * kPanel, item.problem->w->n() - item.panel * kPanel);
}

template <typename T>
void Stream(const Item& item) {
  const Problem& p = *item.problem;
  const int rows = static_cast<int>(p.m);
  const float* a = rows == 1 ? p.x : p.packed;
  // Four panels at a time hide the latency of the multiply-adds; all of k for one set of panels
  // before the next keeps memory moving forward.
  constexpr int64_t kStep = kStreamPanels;
  for (int64_t done = 0; done < item.panels; done += kStep) {
    const Item part{item.problem, 0, p.m, item.panel + done, std::min(kStep, item.panels - done)};
    float* c = p.out + part.panel * kPanel;
    Panels<T> b = PanelsAt<T>(*p.w, part.panel, 0);
    b.jump = (kStep - 1) * b.panel * static_cast<int64_t>(sizeof(T));
    TileStrip<kStreamRows, kStreamPanels>(rows, Columns(part), p.w->k(), a, 0, b, c, p.ldo, false);
  }
}

// `num_k` k-rows of up to kTilePanels panels from `panel` on as float32, scales left for later.
template <typename T>
Panels<float> Decode(const Weight& w, int64_t panel, int64_t panels, int64_t k, int64_t num_k,
                     float* out) {
  const Panels<T> b = PanelsAt<T>(w, panel, k);
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t i = 0; i < num_k * kPanel; i += kLanes) {
      hn::StoreU(LoadAsF32(b.data + p * b.panel + i), F32(), out + p * kBlockK * kPanel + i);
    }
  }
  return {.data = out,
          .step = kPanel,
          .panel = kBlockK * kPanel,
          .scales = b.scales,
          .scale_panel = b.scale_panel};
}

// A block of w that is needed next, asked for bit by bit while another is multiplied.
template <typename T>
class Ahead {
 public:
  Ahead(const Panels<T>& b, int64_t panels, int64_t num_k, int64_t pieces)
      : b_(b),
        panels_(panels),
        lines_(num_k * kPanel * static_cast<int64_t>(sizeof(T)) / kLine),
        step_((lines_ + pieces - 1) / pieces) {}

  void Prefetch() {
    const int64_t end = std::min(done_ + step_, lines_);
    for (int64_t p = 0; p < panels_; ++p) {
      const auto* at = reinterpret_cast<const std::byte*>(b_.data + p * b_.panel);
      for (int64_t l = done_; l < end; ++l) hwy::Prefetch(at + l * kLine);
    }
    done_ = end;
  }

 private:
  static constexpr int64_t kLine = 64;
  Panels<T> b_;
  int64_t panels_, lines_, step_;
  int64_t done_ = 0;
};

template <typename T>
void Blocked(const Item& item, float* decoded) {
  const Problem& p = *item.problem;
  const Weight& w = *p.w;
  const int64_t columns = Columns(item);
  const int64_t chain = ChainLength(w);
  for (int64_t k = 0; k < w.k(); k += chain) {
    const int64_t num_k = std::min(chain, w.k() - k);
    for (int64_t j = 0; j < item.panels; j += kTilePanels) {
      const int64_t panels = std::min<int64_t>(kTilePanels, item.panels - j);
      Panels<float> b;
      if constexpr (std::is_same_v<T, float>) {
        b = PanelsAt<float>(w, item.panel + j, k);
      } else {
        b = Decode<T>(w, item.panel + j, panels, k, num_k, decoded);
      }
      const int64_t n = std::min(panels * kPanel, columns - j * kPanel);
      const bool last = j + kTilePanels >= item.panels;
      const int64_t next_k = last ? k + chain : k, next_j = last ? 0 : j + kTilePanels;
      Ahead<T> next(PanelsAt<T>(w, item.panel + next_j, next_k),
                    std::min<int64_t>(kTilePanels, item.panels - next_j),
                    std::clamp<int64_t>(w.k() - next_k, 0, chain),
                    (item.rows + kTileRows - 1) / kTileRows);
      for (int64_t i = 0; i < item.rows; i += kTileRows) {
        next.Prefetch();
        const int64_t row = item.row + i;
        const int rows = static_cast<int>(std::min<int64_t>(kTileRows, item.rows - i));
        const float* strip = p.packed + row / kTileRows * kStripRoom * w.k();
        TileStrip<kTileRows, kTilePanels>(rows, n, num_k, StripAt(strip, rows, k), w.k() * kSubRows,
                                          b, p.out + row * p.ldo + (item.panel + j) * kPanel, p.ldo,
                                          k > 0);
      }
    }
  }
}

template <typename T>
void Compute(const Item& item, float* decoded) {
  if (item.problem->streams()) {
    Stream<T>(item);
  } else {
    Blocked<T>(item, decoded);
  }
}

// Cuts the problems into items: big ones first would help balance, but they are alike in practice.
std::vector<Item> Plan(std::span<const Problem> problems, int threads) {
  int64_t stream_bytes = 0;
  for (const Problem& p : problems) {
    if (p.streams()) stream_bytes += p.w->bytes();
  }
  const int64_t piece =
      std::clamp<int64_t>(stream_bytes / (threads * 8), int64_t{32} << 10, int64_t{1} << 20);
  std::vector<Item> items;
  for (const Problem& p : problems) {
    if (p.m == 0) continue;
    const int64_t panels = p.w->num_panels();
    int64_t tile_m = kTileM / kTileRows * kTileRows, tile_n = kTileN / kPanel;
    if (p.streams()) {
      tile_m = p.m;
      tile_n = std::max<int64_t>(4, piece * panels / std::max<int64_t>(1, p.w->bytes()) / 4 * 4);
    }
    for (int64_t row = 0; row < p.m; row += tile_m) {
      for (int64_t panel = 0; panel < panels; panel += tile_n) {
        items.push_back(
            {&p, row, std::min(tile_m, p.m - row), panel, std::min(tile_n, panels - panel)});
      }
    }
  }
  return items;
}

void PackRows(Queue& queue, std::span<const Problem> problems) {
  struct Strip {
    const Problem* problem;
    int64_t row;
  };
  std::vector<Strip> strips;
  for (const Problem& p : problems) {
    if (!p.packs) continue;
    for (int64_t row = 0; row < p.m; row += kTileRows) strips.push_back({&p, row});
  }
  const auto pack = [&](int64_t i, int) {
    const Problem& p = *strips[static_cast<size_t>(i)].problem;
    const int64_t row = strips[static_cast<size_t>(i)].row;
    const int rows = static_cast<int>(std::min<int64_t>(kTileRows, p.m - row));
    PackStrip(rows, p.w->k(), p.x + row * p.ldx, p.ldx,
              p.packed + row / kTileRows * kStripRoom * p.w->k());
  };
  constexpr size_t kWorthThreads = 8;
  if (strips.size() < kWorthThreads) {
    for (size_t i = 0; i < strips.size(); ++i) pack(static_cast<int64_t>(i), 0);
  } else {
    queue.pool().ParallelFor(static_cast<int64_t>(strips.size()), pack);
  }
}

}  // namespace

void GemmManyTarget(Queue& queue, std::span<const GemmArgs> args) {
  Scratch scratch(queue);
  std::vector<Problem> problems;
  problems.reserve(args.size());
  for (const GemmArgs& a : args) {
    const auto x = a.x.As<const float, 2>();
    const auto out = a.out.As<float, 2>();
    Check(x.dim(1) == a.w->k() && out.dim(0) == x.dim(0) && out.dim(1) == a.w->n(),
          "Gemm: x [M, K], w [N, K] and out [M, N] disagree");
    Problem p{x.data, x.stride[0], x.dim(0), a.w, out.data, out.stride[0], nullptr, false};
    const auto twin = std::find_if(problems.begin(), problems.end(), [&](const Problem& q) {
      return q.x == p.x && q.ldx == p.ldx && q.m == p.m && q.w->k() == p.w->k();
    });
    if (p.m == 1) {
      p.packed = const_cast<float*>(p.x);
    } else if (twin != problems.end()) {
      p.packed = twin->packed;
    } else {
      p.packed = scratch.Get<float>(PackedFloats(p.m, p.w->k()));
      p.packs = true;
    }
    problems.push_back(p);
  }
  PackRows(queue, problems);

  const std::vector<Item> items = Plan(problems, queue.num_threads());
  constexpr int64_t kDecoded = kBlockK * kPanel * kTilePanels;
  float* decoded = scratch.Get<float>(kDecoded * queue.num_threads());
  queue.pool().ParallelFor(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i)];
    float* mine = decoded + thread * kDecoded;
    switch (item.problem->w->type().dtype) {
      case DType::kF32:
        return Compute<float>(item, mine);
      case DType::kBF16:
        return Compute<bf16>(item, mine);
      case DType::kI8:
        return Compute<int8_t>(item, mine);
      default:
        Fail("weights are float32, bf16 or int8");
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {

HWY_EXPORT(GemmManyTarget);

void GemmMany(Queue& queue, std::span<const GemmArgs> problems) {
  MM01_ON_CUDA(queue, GemmMany(queue, problems));
  HWY_DYNAMIC_DISPATCH(GemmManyTarget)(queue, problems);
  for (const GemmArgs& p : problems) {
    if (p.activation == Activation::kSilu) Silu(queue, p.out);
  }
}

void Gemm(Queue& queue, const GemmArgs& args) {
  MM01_ON_CUDA(queue, Gemm(queue, args));
  GemmMany(queue, {&args, 1});
}

}  // namespace mm01
#endif
