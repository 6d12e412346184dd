// The gradients of attention on Hopper's tensor cores: bf16, K = 64 or 128.
//
// dq and the pair dk, dv have one form. A block has a tile of 128 rows of two matrices x0, x1 and
// walks over tiles of 64 rows of two others, y0, y1:
//
//            x0  x1     y0  y1     sums
//   dq       q   d_out  k   v      dq += D y0
//   dk, dv   k   v      q   d_out  dk += D y0,  dv += P y1
//
//   P = exp2(x0 y0^T scale - shift),  D = P (x1 y1^T - delta)
//
// with shift and delta those of the query row: of a row of x for dq, of a row of y for dk and dv,
// which are worked as the transposes of P and D. One warp copies, stages ahead; two warpgroups of
// 64 rows of x each multiply, P and D never leaving their registers. For dk and dv the query heads
// of the kv head come one after another, each from the diagonal on; so all sums are taken in the
// order of the document.
#include "kernels/attention/attention_backward_cuda.cuh"
#include "kernels/attention/attention_hopper.cuh"
#include "kernels/attention/prefill_tiles.cuh"

namespace mm01::cuda {
namespace {

constexpr int kXRows = 128, kYRows = 64;
static_assert(kXRows == kQueries);
constexpr int kGroupRows = 64;  // of x, a warpgroup's
constexpr int kStages = 4;
constexpr int kThreads = 3 * 128;  // a warpgroup that copies, two that multiply
constexpr int kConsumers = 2 * 128;
constexpr int kXColumnTile = kXRows * 128, kYColumnTile = kYRows * 128;  // bytes of 64 columns
constexpr int kClearBarrier = 1;

struct Params {
  CUtensorMap x[2], y[2];
  const Tile* tiles;
  const int* num_tiles;
  const float *shift, *delta;  // [H, T]
  Heads grad[2];               // dq, or dk and dv
  float scale;
  int rows, group;
  int heads;  // of x
};

template <int kDim>
struct Shared {
  static constexpr int kXBytes = kXRows * kDim * 2, kYBytes = kYRows * kDim * 2;
  unsigned char x[2][kXBytes];
  unsigned char y[kStages][2][kYBytes];
  float2 factors[kStages][2][kYRows / 2];  // shift and delta of y's rows
  uint64_t x_full, full[kStages], empty[kStages];
};

// What a block does: rows of its document from `position` on, and the tiles of y that they meet.
template <bool kIsDq>
struct Item {
  int head;              // of x
  int row, rows;         // of T: x's first, and how many
  int document, length;  // its first row and how many
  int position;          // of x's first row in it
  int first, end;        // tiles of y, of each head
  int y_head, y_heads;

  __device__ __forceinline__ Item(const Params& p, const Tile& t, int x_head)
      : head(x_head),
        row(Uniform(t.row)),
        rows(Uniform(t.rows)),
        document(Uniform(t.row - t.position)),
        length(Uniform(t.length)),
        position(Uniform(t.position)) {
    if constexpr (kIsDq) {
      first = 0;
      end = (position + rows + kYRows - 1) / kYRows;
      y_head = head / p.group;
      y_heads = 1;
    } else {
      first = position / kYRows;
      end = (length + kYRows - 1) / kYRows;
      y_head = head * p.group;
      y_heads = p.group;
    }
  }
};

template <int kDim, bool kIsDq>
__device__ __forceinline__ void Copy(const Params& p, Shared<kDim>& s, const Item<kIsDq>& item) {
  const int lane = threadIdx.x % 32;
  if (lane == 0) {
    BarrierExpect(&s.x_full, 2 * Shared<kDim>::kXBytes);
#pragma unroll
    for (int which = 0; which < 2; ++which) {
#pragma unroll
      for (int c = 0; c < kDim / 64; ++c) {
        TmaLoad(s.x[which] + c * kXColumnTile, &p.x[which], &s.x_full, 64 * c, item.head, item.row);
      }
    }
  }
  StageRing<kStages> ring;
  for (int head = item.y_head; head < item.y_head + item.y_heads; ++head) {
    for (int tile = item.first; tile < item.end; ++tile) {
      uint64_t* full = &s.full[ring.stage];
      const int row = item.document + tile * kYRows;
      BarrierWait(&s.empty[ring.stage], ring.parity ^ 1);
      if (lane == 0) {
        BarrierExpect(full, 2 * Shared<kDim>::kYBytes);
#pragma unroll
        for (int which = 0; which < 2; ++which) {
#pragma unroll
          for (int c = 0; c < kDim / 64; ++c) {
            TmaLoad(s.y[ring.stage][which] + c * kYColumnTile, &p.y[which], full, 64 * c, head,
                    row);
          }
        }
      }
      if constexpr (!kIsDq) {
        auto* shift = reinterpret_cast<float*>(s.factors[ring.stage][0]);
        auto* delta = reinterpret_cast<float*>(s.factors[ring.stage][1]);
        const int64_t at = static_cast<int64_t>(head) * p.rows + row;
        const int valid = item.length - tile * kYRows;
#pragma unroll
        for (int i = lane; i < kYRows; i += 32) {  // rows of others have weight 0
          shift[i] = i < valid ? p.shift[at + i] : INFINITY;
          delta[i] = i < valid ? p.delta[at + i] : 0.0f;
        }
        __syncwarp();
        if (lane == 0) BarrierArrive(full);
      }
      ring.Next();
    }
  }
}

// Rows of y behind the document's last, which weights of zero do not make harmless. By both
// warpgroups.
template <int kDim>
__device__ __forceinline__ void ClearRows(Shared<kDim>& s, int stage, int first) {
  const int thread = static_cast<int>(threadIdx.x) - 128;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
#pragma unroll
    for (int c = 0; c < kDim / 64; ++c) {
      unsigned char* tile = s.y[stage][which] + c * kYColumnTile;
      for (int at = first * 128 + thread * 16; at < kYColumnTile; at += kConsumers * 16) {
        *reinterpret_cast<uint4*>(tile + at) = make_uint4(0, 0, 0, 0);
      }
    }
  }
  ProxyFence();
  NamedBarrierSync<kClearBarrier, kConsumers>();
}

// 64 rows of x; a thread holds parts of the rows r = 16 warp + lane / 4 and r + 8.
template <int kDim, bool kIsDq>
struct Multiplier {
  const Params& p;
  Shared<kDim>& s;
  const Item<kIsDq>& item;
  const int group;                // warpgroup 0 or 1
  const uint64_t x, y, y_by_row;  // y: summed over columns, over rows
  StageRing<kStages> ring;

  float sums[kIsDq ? 1 : 2][kDim / 2];
  float scores[kYRows / 2], products[kYRows / 2];
  float shift[2], delta[2];  // of the thread's rows, for dq

  __device__ __forceinline__ Multiplier(const Params& params, Shared<kDim>& shared,
                                        const Item<kIsDq>& work, int warpgroup)
      : p(params),
        s(shared),
        item(work),
        group(warpgroup),
        x(WgmmaDescriptor(shared.x[0] + warpgroup * kGroupRows * 128)),
        y(WgmmaDescriptor(shared.y)),
        y_by_row(WgmmaDescriptor(shared.y, kYColumnTile)) {}

  __device__ __forceinline__ uint32_t YOffset(int which) const {
    return (ring.stage * 2 + which) * Shared<kDim>::kYBytes;
  }

  // to = x[which] y[which]^T
  __device__ __forceinline__ void MultiplyRows(float (&to)[kYRows / 2], int which) {
    const uint64_t a = Further(x, which * Shared<kDim>::kXBytes), b = Further(y, YOffset(which));
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      WgmmaSs<0, 0>(to, Further(a, i / 4 * kXColumnTile + i % 4 * 32),
                    Further(b, i / 4 * kYColumnTile + i % 4 * 32), i > 0);
    }
    WgmmaCommit();
  }

  // sum += weights y[which]
  __device__ __forceinline__ void AddRows(float (&sum)[kDim / 2],
                                          const uint32_t (&weights)[kYRows / 16][4], int which) {
    const uint64_t b = Further(y_by_row, YOffset(which));
#pragma unroll
    for (int i = 0; i < kYRows / 16; ++i) {
      WgmmaRs<1>(sum, weights[i], Further(b, i * 16 * 128), 1);
    }
    WgmmaCommit();
  }

  // The shift (0) or delta (1) of elements 2 i and 2 i + 1 of a product.
  __device__ __forceinline__ float2 Factors(int which, int i) const {
    if constexpr (kIsDq) {
      const float f = which ? delta[i % 2] : shift[i % 2];
      return {f, f};
    } else {
      return s.factors[ring.stage][which][i / 2 * 4 + threadIdx.x % 4];
    }
  }

  // Does the thread's row of x meet the column of y of an element of the tile on the diagonal?
  __device__ __forceinline__ bool Meets(int element) const {
    const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + element / 2 % 2 * 8;
    const int column = element / 4 * 8 + threadIdx.x % 4 * 2 + element % 2;
    return kIsDq ? column <= row : column >= row;
  }

  template <bool kDiagonal>
  __device__ __forceinline__ void Step(float scale) {
    uint32_t weights[kYRows / 16][4];
    WgmmaFence();
    MultiplyRows(scores, 0);
    MultiplyRows(products, 1);
    WgmmaWait<1>();
    WgmmaHold(scores);
#pragma unroll
    for (int i = 0; i < kYRows / 4; ++i) {
      const float2 f = Factors(0, i);
      float& a = scores[2 * i];
      float& b = scores[2 * i + 1];
      a = Exp2(__fmaf_rn(a, scale, -f.x));
      b = Exp2(__fmaf_rn(b, scale, -f.y));
      if constexpr (kDiagonal) {
        if (!Meets(2 * i)) a = 0.0f;
        if (!Meets(2 * i + 1)) b = 0.0f;
      }
      if constexpr (!kIsDq) weights[i / 4][i % 4] = PackBf16(a, b);
    }
    if constexpr (kIsDq) {
      WgmmaWait<0>();
    } else {
      WgmmaFence();
      AddRows(sums[1], weights, 1);
      WgmmaWait<1>();
    }
    WgmmaHold(products);
    uint32_t slopes[kYRows / 16][4];
#pragma unroll
    for (int i = 0; i < kYRows / 4; ++i) {
      const float2 f = Factors(1, i);
      slopes[i / 4][i % 4] = PackBf16(scores[2 * i] * (products[2 * i] - f.x),
                                      scores[2 * i + 1] * (products[2 * i + 1] - f.y));
    }
    WgmmaFence();
    AddRows(sums[0], slopes, 0);
    WgmmaWait<0>();
    WgmmaHold(sums[0]);
    if constexpr (!kIsDq) WgmmaHold(sums[1]);
  }

  __device__ __forceinline__ int Row(int r) const {  // of the block's x; r = 0, 1
    return group * kGroupRows + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + 8 * r;
  }

  __device__ __forceinline__ void Run() {
    if constexpr (kIsDq) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t at = static_cast<int64_t>(item.head) * p.rows + item.row + Row(r);
        const bool is_ours = Row(r) < item.rows;
        shift[r] = is_ours ? p.shift[at] : INFINITY;
        delta[r] = is_ours ? p.delta[at] : 0.0f;
      }
    }
#pragma unroll
    for (auto& sum : sums) {
#pragma unroll
      for (float& e : sum) e = 0.0f;
    }
    const float scale = p.scale * kLog2E;
    const int diagonal = item.position / kYRows + group;  // the tile of y with the same rows
    const bool has_rows = item.rows > group * kGroupRows;
    BarrierWait(&s.x_full, 0);
    for (int head = 0; head < item.y_heads; ++head) {
      for (int tile = item.first; tile < item.end; ++tile) {
        BarrierWait(&s.full[ring.stage], ring.parity);
        const int valid = item.length - tile * kYRows;
        if (valid < kYRows) ClearRows(s, ring.stage, valid);
        if (has_rows && tile == diagonal) {
          Step<true>(scale);
        } else if (has_rows && (kIsDq ? tile < diagonal : tile > diagonal)) {
          Step<false>(scale);
        }
        Release(&s.empty[ring.stage]);
        ring.Next();
      }
    }
    Write(sums[0], p.grad[0], p.scale);
    if constexpr (!kIsDq) Write(sums[1], p.grad[1], 1.0f);
  }

  __device__ __forceinline__ void Write(const float (&sum)[kDim / 2], const Heads& to,
                                        float factor) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (Row(r) >= item.rows) continue;
      auto* row = static_cast<__nv_bfloat16*>(to.data) + (item.row + Row(r)) * to.row +
                  item.head * to.head + threadIdx.x % 4 * 2;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        const int e = 4 * i + 2 * r;
        *reinterpret_cast<uint32_t*>(row + 8 * i) = PackBf16(sum[e] * factor, sum[e + 1] * factor);
      }
    }
  }
};

template <int kDim, bool kIsDq>
__global__ void __launch_bounds__(kThreads, 1) Gradients(const __grid_constant__ Params p) {
  const int num_tiles = *p.num_tiles, index = static_cast<int>(blockIdx.x) / p.heads;
  if (index >= num_tiles) return;
  auto& s = SharedMemory<Shared<kDim>>();
  if (threadIdx.x == 0) {
    BarrierInit(&s.x_full, 1);
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&s.full[i], kIsDq ? 1 : 2);  // the copies, and the factors
      BarrierInit(&s.empty[i], kConsumers / 32);
    }
    BarrierInitFence();
  }
  __syncthreads();
  // Tiles with most keys come first in the list; those with most queries last.
  const Item<kIsDq> item(p, p.tiles[kIsDq ? index : num_tiles - 1 - index],
                         static_cast<int>(blockIdx.x) % p.heads);
  const int warpgroup = Uniform(static_cast<int>(threadIdx.x) / 128);
  if (warpgroup == 0) {
    RegistersDown<24>();
    if (threadIdx.x < 32) Copy(p, s, item);
  } else {
    RegistersUp<240>();
    Multiplier<kDim, kIsDq> m(p, s, item, warpgroup - 1);
    m.Run();
  }
}

template <int kDim>
CUtensorMap RowsMap(const AttentionDocuments& a, const Heads& x, int heads, int rows) {
  return MakeTensorMap(
      x.data,
      {.dims = {kDim, heads, a.rows}, .strides = {x.head * 2, x.row * 2}, .box = {64, 1, rows}});
}

template <int kDim, bool kIsDq>
void Launch(Queue& queue, const AttentionDocuments& a, const Tile* tiles, const int* num_tiles,
            int64_t most_tiles) {
  const auto query = [&](const Heads& x) {
    return RowsMap<kDim>(a, x, a.heads, kIsDq ? kXRows : kYRows);
  };
  const auto key = [&](const Heads& x) {
    return RowsMap<kDim>(a, x, a.kv_heads, kIsDq ? kYRows : kXRows);
  };
  Params p{.tiles = tiles,
           .num_tiles = num_tiles,
           .shift = a.shift,
           .delta = a.delta,
           .scale = a.scale,
           .rows = a.rows,
           .group = a.group,
           .heads = kIsDq ? a.heads : a.kv_heads};
  CUtensorMap* queries = kIsDq ? p.x : p.y;
  CUtensorMap* keys = kIsDq ? p.y : p.x;
  queries[0] = query(a.q);
  queries[1] = query(a.d_out);
  keys[0] = key(a.k);
  keys[1] = key(a.v);
  p.grad[0] = kIsDq ? a.dq : a.dk;
  p.grad[1] = a.dv;
  constexpr int kBytes = kSharedBytes<Shared<kDim>>;
  AllowSharedMemory<Gradients<kDim, kIsDq>, kBytes>();
  const auto blocks = static_cast<unsigned>(most_tiles * p.heads);
  Gradients<kDim, kIsDq><<<blocks, kThreads, kBytes, queue.stream()>>>(p);
  CheckLaunch();
}

template <int kDim>
void LaunchBoth(Queue& queue, const AttentionDocuments& a) {
  Scratch scratch(queue);
  const int64_t most = a.rows / kQueries + a.documents;
  Tile* tiles = scratch.Get<Tile>(most);
  int* counters = scratch.Get<int>(2);
  Sequences documents{};
  documents.cu_seqlens = a.cu_seqlens;
  documents.count = a.documents;
  ListTiles<<<1, 1024, 0, queue.stream()>>>(documents, 0, tiles, counters);
  CheckLaunch();
  Launch<kDim, true>(queue, a, tiles, counters, most);
  Launch<kDim, false>(queue, a, tiles, counters, most);
}

}  // namespace

void AttentionBackwardHopper(Queue& queue, const AttentionDocuments& a) {
  if (a.dim == 128) {
    LaunchBoth<128>(queue, a);
  } else {
    LaunchBoth<64>(queue, a);
  }
}

}  // namespace mm01::cuda
