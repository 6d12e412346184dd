// Schedule: one item a (sequence, kv head, tile of queries), the query heads of the group side by
// side as rows of one matrix. A short batch over a long cache is cut by splits of the keys as well,
// their partial results held and merged in the order in which one item would have merged them.
#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/attention_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/gemm/tile-inl.h"

#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/attention.h"
#ifdef MM01_CUDA
#include "kernels/attention/attention_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kTile = 256;    // keys folded at once
constexpr int64_t kSplit = 1024;  // keys of one partial result
constexpr int64_t kRows = 48;     // query rows of an item, all heads of the group counted
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// What some keys give: out = acc / sum, lse = max + log(sum). sum is 0 where nothing was visible.
struct Partial {
  float* max;  // [rows]
  float* sum;  // [rows]
  float* acc;  // [rows, dim]

  static int64_t Floats(int64_t rows, int64_t dim) { return rows * (dim + 2); }
  Partial(float* memory, int64_t rows) : max(memory), sum(memory + rows), acc(memory + 2 * rows) {}
  void Clear(int64_t rows, int64_t dim) const {
    std::fill(max, max + rows, kNothing);
    std::fill(sum, sum + rows, 0.0f);
    std::fill(acc, acc + rows * dim, 0.0f);
  }
};

// Working memory of one thread.
struct Room {
  float* q;       // packed
  float* scores;  // [rows, kTile], or [rows, dim] while queries are packed
  float* packed;  // probabilities
  float* page;    // [B, dim], a page decoded

  static int64_t Floats(int64_t rows, int64_t dim) {
    return PackedFloats(rows, dim) + rows * std::max(kTile, dim) + PackedFloats(rows, kKvPage) +
           kKvPage * dim;
  }
  Room(float* memory, int64_t rows, int64_t dim)
      : q(memory),
        scores(q + PackedFloats(rows, dim)),
        packed(scores + rows * std::max(kTile, dim)),
        page(packed + PackedFloats(rows, kKvPage)) {}
};

// The queries of one item: rows = queries * group, row = query * group + head.
struct Item {
  int64_t seq, kv_head;
  int64_t row;  // of T, the first query
  int64_t queries;
  int64_t position;  // of the first query, counted from kv_start; may be negative
  int64_t split;     // or -1 for all of them
  int64_t visible() const { return position + queries; }  // keys that the last query may see
};

struct Problem {
  const AttentionArgs* args;
  View<const float, 3> q;
  View<const int32_t, 2> table;
  View<const int64_t, 1> length;
  View<const float, 2> k_scale, v_scale;
  int64_t heads, kv_heads, dim, group;
  bool kv_is_bf16;

  int64_t Visible(const Item& item) const { return std::min(item.visible(), length(item.seq)); }
};

template <typename T>
const T* PageAt(const Tensor& pool, int64_t page, int64_t kv_head) {
  return static_cast<const T*>(pool.data) + page * pool.stride[0] + kv_head * pool.stride[1];
}

void DecodePage(const bf16* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) hn::StoreU(LoadAsF32(in + i), F32(), out + i);
}

// c = or += a * page, where the page is laid out with the given steps. A page that several strips
// of rows share is decoded once.
template <typename T>
void MultiplyPage(int64_t rows, int64_t n, int64_t num_k, const float* packed, Panels<T> page,
                  int64_t page_elements, float* c, int64_t ldc, bool add, const Room& room) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (rows > kTileRows) {
      DecodePage(page.data, page_elements, room.page);
      PackedGemm(rows, n, num_k, packed,
                 Panels<float>{.data = room.page, .step = page.step, .panel = page.panel}, c, ldc,
                 add);
      return;
    }
  }
  PackedGemm(rows, n, num_k, packed, page, c, ldc, add);
}

HWY_INLINE void ScaleRow(float* x, int64_t n, float factor) {
  const F32 d;
  const VF f = hn::Set(d, factor);
  for (int64_t i = 0; i < n; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, x + i), f), d, x + i);
}

// Turns scores[0 .. seen-1] into exp(score - max) in place, with the rest of the tile zero, and
// folds them into (max, sum). Returns the factor that older sums and outputs are to be multiplied
// by.
float SoftmaxRow(float* scores, int64_t seen, float& max, float& sum) {
  const F32 d;
  std::fill(scores + seen, scores + kTile, kNothing);
  const int64_t used = (seen + kPanel - 1) / kPanel * kPanel;
  alignas(64) float lanes[kPanel];
  for (int v = 0; v < kVecs; ++v) {
    VF best = hn::Set(d, kNothing);
    for (int64_t i = 0; i < used; i += kPanel) {
      best = hn::Max(best, hn::LoadU(d, scores + i + v * kLanes));
    }
    hn::StoreU(best, d, lanes + v * kLanes);
  }
  const float top = std::max(max, Fold16(lanes, [](float a, float b) { return std::max(a, b); }));
  const VF shift = hn::Set(d, top);
  for (int v = 0; v < kVecs; ++v) {
    VF total = hn::Zero(d);
    for (int64_t i = 0; i < used; i += kPanel) {
      float* at = scores + i + v * kLanes;
      const VF x = hn::Sub(hn::LoadU(d, at), shift);
      // Below -100 the result is 0 beside the 1 of the maximum; -inf would confuse Exp.
      const VF p = hn::IfThenElseZero(hn::Gt(x, hn::Set(d, -100.0f)), hn::Exp(d, x));
      hn::StoreU(p, d, at);
      total = hn::Add(total, p);
    }
    hn::StoreU(total, d, lanes + v * kLanes);
  }
  std::fill(scores + used, scores + kTile, 0.0f);
  const float factor = std::exp(max - top);
  sum = sum * factor + Fold16(lanes, [](float a, float b) { return a + b; });
  max = top;
  return factor;
}

// Keys begin .. begin + kTile - 1 (counted from kv_start) folded into `part`.
template <typename T>
void FoldTile(const Problem& p, const Item& item, int64_t begin, const Partial& part,
              const Room& room) {
  const PagedKv& kv = p.args->kv;
  const int64_t rows = item.queries * p.group, dim = p.dim;
  const int64_t keys = std::min(kTile, p.Visible(item) - begin);
  const auto page_of = [&](int64_t at) { return p.table(item.seq, (begin + at) / kKvPage); };
  const auto keys_of = [&](int64_t at) { return PageAt<T>(kv.k, page_of(at), item.kv_head); };
  const auto values_of = [&](int64_t at) { return PageAt<T>(kv.v, page_of(at), item.kv_head); };
  // Pages lie apart, so the processor does not see the next one coming.
  const auto ahead = [](const T* page, const T* next) {
    return reinterpret_cast<const std::byte*>(next) - reinterpret_cast<const std::byte*>(page);
  };

  for (int64_t at = 0; at < keys; at += kKvPage) {
    const T* page = keys_of(at);
    const T* next = at + kKvPage < keys ? keys_of(at + kKvPage) : values_of(0);
    MultiplyPage(
        rows, std::min(kKvPage, keys - at), dim, room.q,
        Panels<T>{.data = page, .step = kPanel, .panel = dim * kPanel, .ahead = ahead(page, next)},
        kKvPage * dim, room.scores + at, kTile, false, room);
    const float scale = p.k_scale(page_of(at), item.kv_head);
    if (scale == 1.0f) continue;
    for (int64_t r = 0; r < rows; ++r) ScaleRow(room.scores + r * kTile + at, kKvPage, scale);
  }
  for (int64_t r = 0; r < rows; ++r) {
    // A row that sees none of these keys keeps its sums as they are, to the bit.
    const int64_t seen = std::min(keys, item.position + r / p.group + 1 - begin);
    float* scores = room.scores + r * kTile;
    if (seen <= 0) {
      std::fill(scores, scores + kTile, 0.0f);
      continue;
    }
    const float factor = SoftmaxRow(scores, seen, part.max[r], part.sum[r]);
    if (factor != 1.0f) ScaleRow(part.acc + r * dim, dim, factor);
  }
  const bool more = begin + kTile < p.Visible(item);
  for (int64_t at = 0; at < keys; at += kKvPage) {
    const T* page = values_of(at);
    const T* next = page;
    if (at + kKvPage < keys) {
      next = values_of(at + kKvPage);
    } else if (more) {
      next = keys_of(kTile);
    }
    const int64_t num_k = std::min(kKvPage, keys - at);
    const float scale = p.v_scale(page_of(at), item.kv_head);
    if (scale != 1.0f) {
      for (int64_t r = 0; r < rows; ++r) ScaleRow(room.scores + r * kTile + at, kKvPage, scale);
    }
    PackRowsOf(rows, num_k, room.scores + at, kTile, room.packed);
    MultiplyPage(rows, dim, num_k, room.packed,
                 Panels<T>{.data = page, .step = dim, .panel = kPanel, .ahead = ahead(page, next)},
                 num_k * dim, part.acc, dim, true, room);
  }
}

void FoldSplit(const Problem& p, const Item& item, int64_t split, const Partial& part,
               const Room& room) {
  part.Clear(item.queries * p.group, p.dim);
  const int64_t end = std::min((split + 1) * kSplit, p.Visible(item));
  for (int64_t begin = split * kSplit; begin < end; begin += kTile) {
    if (p.kv_is_bf16) {
      FoldTile<bf16>(p, item, begin, part, room);
    } else {
      FoldTile<float>(p, item, begin, part, room);
    }
  }
}

void Merge(const Partial& total, const Partial& part, int64_t rows, int64_t dim) {
  const F32 d;
  for (int64_t r = 0; r < rows; ++r) {
    if (part.sum[r] == 0.0f) continue;
    const float top = std::max(total.max[r], part.max[r]);
    const float a = std::exp(total.max[r] - top), b = std::exp(part.max[r] - top);
    total.max[r] = top;
    total.sum[r] = total.sum[r] * a + part.sum[r] * b;
    float* acc = total.acc + r * dim;
    const float* more = part.acc + r * dim;
    for (int64_t i = 0; i < dim; i += kLanes) {
      const VF old = hn::Mul(hn::LoadU(d, acc + i), hn::Set(d, a));
      hn::StoreU(hn::MulAdd(hn::LoadU(d, more + i), hn::Set(d, b), old), d, acc + i);
    }
  }
}

void PackQueries(const Problem& p, const Item& item, const Room& room) {
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.dim)));
  const int64_t rows = item.queries * p.group;
  float* scaled = room.scores;  // free until the first tile
  for (int64_t r = 0; r < rows; ++r) {
    const float* q = &p.q(item.row + r / p.group, item.kv_head * p.group + r % p.group, 0);
    for (int64_t i = 0; i < p.dim; ++i) scaled[r * p.dim + i] = q[i] * scale;
  }
  PackRowsOf(rows, p.dim, scaled, p.dim, room.q);
}

void Finish(const Problem& p, const Item& item, const Partial& total) {
  const auto out = p.args->out.As<float, 3>();
  for (int64_t r = 0; r < item.queries * p.group; ++r) {
    const int64_t row = item.row + r / p.group, head = item.kv_head * p.group + r % p.group;
    const float inverse = total.sum[r] > 0.0f ? 1.0f / total.sum[r] : 0.0f;
    float* o = &out(row, head, 0);
    for (int64_t i = 0; i < p.dim; ++i) o[i] = total.acc[r * p.dim + i] * inverse;
    if (p.args->lse.empty()) continue;
    p.args->lse.As<float, 2>()(row, head) =
        total.sum[r] > 0.0f ? total.max[r] + std::log(total.sum[r]) : kNothing;
  }
}

Problem Checked(const AttentionArgs& a) {
  Problem p{.args = &a,
            .q = a.q.As<const float, 3>(),
            .table = a.block_table.As<const int32_t, 2>(),
            .length = a.kv_length.As<const int64_t, 1>(),
            .k_scale = a.kv.k_scale.As<const float, 2>(),
            .v_scale = a.kv.v_scale.As<const float, 2>()};
  p.heads = p.q.dim(1);
  p.dim = p.q.dim(2);
  p.kv_heads = a.kv.k.dim(1);
  Check(p.kv_heads > 0 && p.heads % p.kv_heads == 0, "Attention: H is no multiple of G");
  p.group = p.heads / p.kv_heads;
  p.kv_is_bf16 = a.kv.k.dtype == DType::kBF16;
  Check(p.kv_is_bf16 || a.kv.k.dtype == DType::kF32, "Attention: the cache is float32 or bf16");
  Check(a.kv.v.dtype == a.kv.k.dtype, "Attention: k and v differ in type");
  Check(p.dim % kPanel == 0 && a.kv.k.dim(2) == p.dim * kKvPage && a.kv.v.dim(2) == p.dim * kKvPage,
        "Attention: pages are of another head dim");
  Check(a.out.As<float, 3>().shape == p.q.shape, "Attention: out [T, H, V] is not as q");
  return p;
}

}  // namespace

void AttentionTarget(Queue& queue, const AttentionArgs& a) {
  const Problem p = Checked(a);
  const auto cu = a.cu_seqlens.As<const int64_t, 1>();
  const auto position = a.position.As<const int64_t, 1>();
  const auto start = a.kv_start.As<const int64_t, 1>();
  const int64_t num_seqs = position.dim(0);
  Check(cu.dim(0) == num_seqs + 1 && cu(num_seqs) == p.q.dim(0),
        "Attention: cu_seqlens and T disagree");

  const int64_t tile = std::max<int64_t>(1, kRows / p.group);
  std::vector<Item> items;
  int64_t num_splits = 1, rows = p.group;  // rows of the largest item
  for (int64_t n = 0; n < num_seqs; ++n) {
    for (int64_t at = cu(n); at < cu(n + 1); at += tile) {
      for (int64_t g = 0; g < p.kv_heads; ++g) {
        items.push_back(
            {n, g, at, std::min(tile, cu(n + 1) - at), position(n) - start(n) + at - cu(n), -1});
        num_splits = std::max(num_splits, (p.Visible(items.back()) + kSplit - 1) / kSplit);
        rows = std::max(rows, items.back().queries * p.group);
      }
    }
  }

  Scratch scratch(queue);
  const int64_t room_floats = Room::Floats(rows, p.dim), part_floats = Partial::Floats(rows, p.dim);
  float* rooms = scratch.Get<float>(room_floats * queue.num_threads());
  const auto room_of = [&](int thread) { return Room(rooms + thread * room_floats, rows, p.dim); };
  const auto num_items = static_cast<int64_t>(items.size());
  const auto splits_of = [&](const Item& item) { return (p.Visible(item) + kSplit - 1) / kSplit; };

  if (num_items >= 4 * queue.num_threads() || num_splits == 1) {
    float* parts = scratch.Get<float>(2 * part_floats * queue.num_threads());
    queue.pool().ParallelFor(num_items, [&](int64_t i, int thread) {
      const Item& item = items[static_cast<size_t>(i)];
      const Room room = room_of(thread);
      const Partial total(parts + 2 * thread * part_floats, rows);
      const Partial part(parts + (2 * thread + 1) * part_floats, rows);
      total.Clear(rows, p.dim);
      PackQueries(p, item, room);
      for (int64_t s = 0; s < splits_of(item); ++s) {
        FoldSplit(p, item, s, part, room);
        Merge(total, part, item.queries * p.group, p.dim);
      }
      Finish(p, item, total);
    });
    return;
  }
  float* parts = scratch.Get<float>(num_items * (num_splits + 1) * part_floats);
  const auto part_of = [&](int64_t item, int64_t split) {
    return Partial(parts + (item * (num_splits + 1) + split) * part_floats, rows);
  };
  queue.pool().ParallelFor(num_items * num_splits, [&](int64_t i, int thread) {
    const Item& item = items[static_cast<size_t>(i / num_splits)];
    if (i % num_splits >= splits_of(item)) return;
    const Room room = room_of(thread);
    PackQueries(p, item, room);
    FoldSplit(p, item, i % num_splits, part_of(i / num_splits, i % num_splits), room);
  });
  queue.pool().ParallelFor(num_items, [&](int64_t i, int) {
    const Item& item = items[static_cast<size_t>(i)];
    const Partial total = part_of(i, num_splits);
    total.Clear(rows, p.dim);
    for (int64_t s = 0; s < splits_of(item); ++s) {
      Merge(total, part_of(i, s), item.queries * p.group, p.dim);
    }
    Finish(p, item, total);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {

HWY_EXPORT(AttentionTarget);

void Attention(Queue& queue, const AttentionArgs& args) {
  MM01_ON_CUDA(queue, Attention(queue, args));
  HWY_DYNAMIC_DISPATCH(AttentionTarget)(queue, args);
}

}  // namespace mm01
#endif
