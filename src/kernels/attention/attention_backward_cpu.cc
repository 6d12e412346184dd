// Schedule: the query heads of a kv head lie side by side as rows of one matrix, row = query *
// group
// + head. An item is a tile of 64 such rows (for out and dq), which walks the keys it may see, or a
// tile of 64 keys (for dk and dv), which walks the rows that may see it. What is multiplied from
// the right is transposed once, ahead of both.
#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/attention_backward_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/gemm/tile-inl.h"

#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/attention_backward.h"
#ifdef MM01_CUDA
#include "kernels/attention/attention_backward_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kTile = 64;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

struct Document {
  int64_t first, rows;  // of T
  int64_t key_tile;     // how many tiles of keys, and of query rows, come before its own
  int64_t row_tile;
};

struct Problem {
  int64_t heads, kv_heads, group, dim, tokens;
  std::vector<Document> documents;
  int64_t key_tiles = 0, row_tiles = 0;  // of all documents, one kv head

  Problem(const Tensor& q, const Tensor& k, const Tensor& cu_seqlens)
      : heads(q.dim(1)),
        kv_heads(k.dim(1)),
        group(heads / kv_heads),
        dim(q.dim(2)),
        tokens(q.dim(0)) {
    const auto cu = cu_seqlens.As<const int64_t, 1>();
    Check(cu(0) == 0 && cu(cu.dim(0) - 1) == tokens, "Attention: cu_seqlens does not cover T");
    for (int64_t n = 0; n + 1 < cu.dim(0); ++n) {
      const int64_t rows = cu(n + 1) - cu(n);
      documents.push_back({cu(n), rows, key_tiles, row_tiles});
      key_tiles += (rows + kTile - 1) / kTile;
      row_tiles += (rows * group + kTile - 1) / kTile;
    }
  }
};

// Rows of every kv head end to end, and the same transposed tile by tile: [kv head][tile][K][64].
struct Packed {
  float* rows;        // [G][T r][K], r rows a token
  float* transposed;  // null where nobody needs it
  int64_t per_token, tiles, tokens, dim;

  float* Row(int64_t kv_head, int64_t first_token, int64_t row) const {
    return rows + ((kv_head * tokens + first_token) * per_token + row) * dim;
  }
  Panels<float> Transposed(int64_t kv_head, int64_t tile) const {
    return {.data = transposed + (kv_head * tiles + tile) * dim * kTile,
            .step = kTile,
            .panel = kPanel};
  }
};

// Copies x [T, G r, K], times `factor`.
Packed Pack(Queue& queue, Scratch& scratch, const Problem& p, const Tensor& tensor, float factor,
            bool transpose) {
  const auto x = tensor.As<const float, 3>();
  const int64_t per_token = x.dim(1) / p.kv_heads;
  const bool keys = x.dim(1) == p.kv_heads;
  Packed out{scratch.Get<float>(x.dim(0) * x.dim(1) * p.dim),
             nullptr,
             per_token,
             keys ? p.key_tiles : p.row_tiles,
             p.tokens,
             p.dim};
  queue.pool().ParallelFor(p.tokens, [&](int64_t t, int) {
    for (int64_t h = 0; h < x.dim(1); ++h) {
      float* row = out.Row(h / per_token, t, h % per_token);
      for (int64_t i = 0; i < p.dim; ++i) row[i] = x(t, h, i) * factor;
    }
  });
  if (!transpose) return out;
  out.transposed = scratch.Get<float>(p.kv_heads * out.tiles * p.dim * kTile);
  queue.pool().ParallelFor(
      p.kv_heads * static_cast<int64_t>(p.documents.size()), [&](int64_t item, int) {
        const int64_t kv_head = item % p.kv_heads;
        const Document& d = p.documents[static_cast<size_t>(item / p.kv_heads)];
        const int64_t rows = d.rows * per_token;
        for (int64_t begin = 0; begin < rows; begin += kTile) {
          const int64_t tile = (keys ? d.key_tile : d.row_tile) + begin / kTile;
          const int64_t count = std::min(kTile, rows - begin);
          float* to = out.transposed + (kv_head * out.tiles + tile) * p.dim * kTile;
          for (int64_t r = 0; r < kTile; ++r) {
            const float* from = out.Row(kv_head, d.first, begin + r);
            for (int64_t i = 0; i < p.dim; ++i) to[i * kTile + r] = r < count ? from[i] : 0.0f;
          }
        }
      });
  return out;
}

Panels<float> AsPanels(const float* rows, int64_t dim) {
  return {.data = rows, .step = dim, .panel = kPanel};
}

// Working memory of one thread.
struct Room {
  float* left;    // packed strips that a tile's products share
  float* other;   // the same of another matrix
  float* packed;  // strips of probabilities
  float* p;       // [64, 64]
  float* d;       // [64, 64]
  float* acc;     // [64, K]
  float* more;    // [64, K]

  static int64_t Floats(int64_t dim) {
    return 2 * PackedFloats(kTile, dim) + PackedFloats(kTile, kTile) + 2 * kTile * kTile +
           2 * kTile * dim;
  }
  Room(float* memory, int64_t dim)
      : left(memory),
        other(left + PackedFloats(kTile, dim)),
        packed(other + PackedFloats(kTile, dim)),
        p(packed + PackedFloats(kTile, kTile)),
        d(p + kTile * kTile),
        acc(d + kTile * kTile),
        more(acc + kTile * dim) {}
};

// A tile of query rows of one document and kv head.
struct RowTile {
  const Document* document;
  int64_t kv_head, begin, rows;
};
// A tile of keys.
using KeyTile = RowTile;

template <typename F>
void ForTiles(Queue& queue, const Problem& p, int64_t per_token, F&& fn) {
  std::vector<RowTile> tiles;
  for (const Document& d : p.documents) {
    for (int64_t g = 0; g < p.kv_heads; ++g) {
      for (int64_t begin = 0; begin < d.rows * per_token; begin += kTile) {
        tiles.push_back({&d, g, begin, std::min(kTile, d.rows * per_token - begin)});
      }
    }
  }
  Scratch scratch(queue);
  float* memory = scratch.Get<float>(Room::Floats(p.dim) * queue.num_threads());
  queue.pool().ParallelFor(std::ssize(tiles), [&](int64_t i, int thread) {
    fn(tiles[static_cast<size_t>(i)], Room(memory + thread * Room::Floats(p.dim), p.dim));
  });
}

int64_t RoundUp(int64_t n) {
  return (n + kPanel - 1) / kPanel * kPanel;
}

// x = exp(x - shift) for x[0 .. seen-1], 0 for the rest up to 64. The row has 64 numbers.
void ExpRow(float* x, int64_t seen, float shift) {
  const F32 d;
  std::fill(x + std::max<int64_t>(0, seen), x + kTile, kNothing);
  const VF s = hn::Set(d, shift);
  for (int64_t i = 0; i < kTile; i += kLanes) {
    const VF y = hn::Sub(hn::LoadU(d, x + i), s);
    // Below -87 the result is no normal number; -inf would confuse Exp.
    hn::StoreU(hn::IfThenElseZero(hn::Gt(y, hn::Set(d, -87.0f)), hn::Exp(d, y)), d, x + i);
  }
}

// Scores of a row's visible keys folded into (max, sum); returns what older sums are to be
// multiplied by.
float SoftmaxRow(float* scores, int64_t seen, float& max, float& sum) {
  const float top = std::max(max, *std::max_element(scores, scores + seen));
  ExpRow(scores, seen, top);
  alignas(64) float lanes[16] = {};
  for (int64_t i = 0; i < kTile; ++i) lanes[i % 16] += scores[i];
  const float factor = std::exp(max - top);
  sum = sum * factor + Fold16(lanes, [](float a, float b) { return a + b; });
  max = top;
  return factor;
}

void ScaleRow(float* x, int64_t n, float factor) {
  const F32 d;
  const VF f = hn::Set(d, factor);
  for (int64_t i = 0; i < n; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, x + i), f), d, x + i);
}

float DotRow(const float* a, const float* b, int64_t n) {
  alignas(64) float lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i % 16] += a[i] * b[i];
  return Fold16(lanes, [](float x, float y) { return x + y; });
}

// d = p * (d - delta), 64 numbers.
void SoftmaxBackwardRow(const float* p, float delta, float* d) {
  const F32 lanes;
  const VF shift = hn::Set(lanes, delta);
  for (int64_t i = 0; i < kTile; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(lanes, p + i), hn::Sub(hn::LoadU(lanes, d + i), shift)), lanes,
               d + i);
  }
}

float Scale(int64_t dim) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
}

}  // namespace

void AttentionPassTarget(Queue& queue, const AttentionPassArgs& args) {
  const Problem p(args.q, args.k, args.cu_seqlens);
  const auto out = args.out.As<float, 3>();
  const auto lse = args.lse.As<float, 2>();
  const int64_t dim = p.dim;
  Scratch scratch(queue);
  const Packed q = Pack(queue, scratch, p, args.q, Scale(dim), false);
  const Packed k = Pack(queue, scratch, p, args.k, 1.0f, true);
  const Packed v = Pack(queue, scratch, p, args.v, 1.0f, false);
  ForTiles(queue, p, p.group, [&](const RowTile& tile, const Room& room) {
    const Document& d = *tile.document;
    PackRowsOf(tile.rows, dim, q.Row(tile.kv_head, d.first, tile.begin), dim, room.left);
    float max[kTile], sum[kTile];
    std::fill(max, max + kTile, kNothing);
    std::fill(sum, sum + kTile, 0.0f);
    const int64_t visible = (tile.begin + tile.rows - 1) / p.group + 1;
    for (int64_t s = 0; s < visible; s += kTile) {
      const int64_t keys = std::min(kTile, d.rows - s);
      PackedGemm(tile.rows, RoundUp(keys), dim, room.left,
                 k.Transposed(tile.kv_head, d.key_tile + s / kTile), room.p, kTile, false);
      for (int64_t r = 0; r < tile.rows; ++r) {
        const int64_t seen = std::min(keys, (tile.begin + r) / p.group + 1 - s);
        float* row = room.p + r * kTile;
        if (seen <= 0) {
          std::fill(row, row + kTile, 0.0f);
          continue;
        }
        const float factor = SoftmaxRow(row, seen, max[r], sum[r]);
        if (s > 0) ScaleRow(room.acc + r * dim, dim, factor);
      }
      SmallGemm(tile.rows, dim, keys, room.p, kTile, AsPanels(v.Row(tile.kv_head, d.first, s), dim),
                room.acc, dim, s > 0, room.packed);
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t t = d.first + (tile.begin + r) / p.group;
      const int64_t h = tile.kv_head * p.group + (tile.begin + r) % p.group;
      ScaleRow(room.acc + r * dim, dim, 1.0f / sum[r]);
      std::copy_n(room.acc + r * dim, dim, &out(t, h, 0));
      lse(t, h) = max[r] + std::log(sum[r]);
    }
  });
}

void AttentionBackwardTarget(Queue& queue, const AttentionBackwardArgs& args) {
  const Problem p(args.q, args.k, args.cu_seqlens);
  const auto out = args.out.As<const float, 3>(), d_out = args.d_out.As<const float, 3>();
  const auto lse_of = args.lse.As<const float, 2>();
  const auto dq = args.dq.As<float, 3>(), dk = args.dk.As<float, 3>(), dv = args.dv.As<float, 3>();
  const int64_t dim = p.dim;
  const float scale = Scale(dim);
  Scratch scratch(queue);
  const Packed q = Pack(queue, scratch, p, args.q, scale, true);
  const Packed g = Pack(queue, scratch, p, args.d_out, 1.0f, true);
  const Packed k = Pack(queue, scratch, p, args.k, 1.0f, true);
  const Packed v = Pack(queue, scratch, p, args.v, 1.0f, true);
  // Of each query row, [G][T group]: the log of its sum, and do . o.
  float* lse = scratch.Get<float>(p.tokens * p.heads);
  float* delta = scratch.Get<float>(p.tokens * p.heads);
  const auto row_at = [&](int64_t kv_head, const Document& d, int64_t row) {
    return (kv_head * p.tokens + d.first) * p.group + row;
  };
  queue.pool().ParallelFor(p.tokens, [&](int64_t t, int) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t at = (h / p.group * p.tokens + t) * p.group + h % p.group;
      lse[at] = lse_of(t, h);
      delta[at] = DotRow(&d_out(t, h, 0), &out(t, h, 0), dim);
    }
  });

  ForTiles(queue, p, p.group, [&](const RowTile& tile, const Room& room) {
    const Document& d = *tile.document;
    PackRowsOf(tile.rows, dim, q.Row(tile.kv_head, d.first, tile.begin), dim, room.left);
    PackRowsOf(tile.rows, dim, g.Row(tile.kv_head, d.first, tile.begin), dim, room.other);
    const int64_t visible = (tile.begin + tile.rows - 1) / p.group + 1;
    for (int64_t s = 0; s < visible; s += kTile) {
      const int64_t keys = std::min(kTile, d.rows - s), key_tile = d.key_tile + s / kTile;
      PackedGemm(tile.rows, kTile, dim, room.left, k.Transposed(tile.kv_head, key_tile), room.p,
                 kTile, false);
      PackedGemm(tile.rows, kTile, dim, room.other, v.Transposed(tile.kv_head, key_tile), room.d,
                 kTile, false);
      for (int64_t r = 0; r < tile.rows; ++r) {
        const int64_t at = row_at(tile.kv_head, d, tile.begin + r);
        ExpRow(room.p + r * kTile, std::min(keys, (tile.begin + r) / p.group + 1 - s), lse[at]);
        SoftmaxBackwardRow(room.p + r * kTile, delta[at], room.d + r * kTile);
      }
      SmallGemm(tile.rows, dim, keys, room.d, kTile, AsPanels(k.Row(tile.kv_head, d.first, s), dim),
                room.acc, dim, s > 0, room.packed);
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t t = d.first + (tile.begin + r) / p.group;
      const int64_t h = tile.kv_head * p.group + (tile.begin + r) % p.group;
      ScaleRow(room.acc + r * dim, dim, scale);
      std::copy_n(room.acc + r * dim, dim, &dq(t, h, 0));
    }
  });

  // Here scores stand the other way round: a row is a key, a column a query row.
  ForTiles(queue, p, 1, [&](const KeyTile& tile, const Room& room) {
    const Document& d = *tile.document;
    PackRowsOf(tile.rows, dim, k.Row(tile.kv_head, d.first, tile.begin), dim, room.left);
    PackRowsOf(tile.rows, dim, v.Row(tile.kv_head, d.first, tile.begin), dim, room.other);
    const int64_t first = tile.begin * p.group / kTile * kTile, rows = d.rows * p.group;
    for (int64_t row = first; row < rows; row += kTile) {
      const int64_t count = std::min(kTile, rows - row), row_tile = d.row_tile + row / kTile;
      PackedGemm(tile.rows, kTile, dim, room.left, q.Transposed(tile.kv_head, row_tile), room.p,
                 kTile, false);
      PackedGemm(tile.rows, kTile, dim, room.other, g.Transposed(tile.kv_head, row_tile), room.d,
                 kTile, false);
      const float* shift = lse + row_at(tile.kv_head, d, row);
      const float* deltas = delta + row_at(tile.kv_head, d, row);
      for (int64_t s = 0; s < tile.rows; ++s) {
        const F32 lanes;
        float *pr = room.p + s * kTile, *dr = room.d + s * kTile;
        const int64_t sees = std::max<int64_t>(0, (tile.begin + s) * p.group - row);
        std::fill(pr, pr + std::min(kTile, sees), kNothing);
        for (int64_t i = 0; i < count; ++i) pr[i] -= shift[i];
        std::fill(pr + count, pr + kTile, kNothing);
        for (int64_t i = 0; i < count; ++i) dr[i] -= deltas[i];
        ExpRow(pr, kTile, 0.0f);
        for (int64_t i = 0; i < kTile; i += kLanes) {
          hn::StoreU(hn::Mul(hn::LoadU(lanes, pr + i), hn::LoadU(lanes, dr + i)), lanes, dr + i);
        }
      }
      const bool add = row > first;
      SmallGemm(tile.rows, dim, count, room.p, kTile,
                AsPanels(g.Row(tile.kv_head, d.first, row), dim), room.more, dim, add, room.packed);
      SmallGemm(tile.rows, dim, count, room.d, kTile,
                AsPanels(q.Row(tile.kv_head, d.first, row), dim), room.acc, dim, add, room.packed);
    }
    for (int64_t s = 0; s < tile.rows; ++s) {
      const int64_t t = d.first + tile.begin + s;
      std::copy_n(room.acc + s * dim, dim, &dk(t, tile.kv_head, 0));
      std::copy_n(room.more + s * dim, dim, &dv(t, tile.kv_head, 0));
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {
namespace {

void CheckShapes(const Tensor& q, const Tensor& k, std::initializer_list<const Tensor*> like_q,
                 std::initializer_list<const Tensor*> like_k, const Tensor& lse) {
  bool ok = q.rank == 3 && k.rank == 3 && k.dim(0) == q.dim(0) && q.dim(1) % k.dim(1) == 0 &&
            k.dim(2) == q.dim(2) && q.dim(2) % kPanel == 0;
  for (const Tensor* t : like_q) ok = ok && t->rank == 3 && t->shape == q.shape;
  for (const Tensor* t : like_k) ok = ok && t->rank == 3 && t->shape == k.shape;
  ok = ok && lse.rank == 2 && lse.dim(0) == q.dim(0) && lse.dim(1) == q.dim(1);
  Check(ok, "Attention: rows [T, H, K] and [T, G, K] and lse [T, H] disagree");
}

}  // namespace

HWY_EXPORT(AttentionPassTarget);
HWY_EXPORT(AttentionBackwardTarget);

void AttentionPass(Queue& queue, const AttentionPassArgs& a) {
  MM01_ON_CUDA(queue, AttentionPass(queue, a));
  CheckShapes(a.q, a.k, {&a.out}, {&a.v}, a.lse);
  HWY_DYNAMIC_DISPATCH(AttentionPassTarget)(queue, a);
}

void AttentionBackward(Queue& queue, const AttentionBackwardArgs& a) {
  MM01_ON_CUDA(queue, AttentionBackward(queue, a));
  CheckShapes(a.q, a.k, {&a.out, &a.d_out, &a.dq}, {&a.v, &a.dk, &a.dv}, a.lse);
  HWY_DYNAMIC_DISPATCH(AttentionBackwardTarget)(queue, a);
}

}  // namespace mm01
#endif
