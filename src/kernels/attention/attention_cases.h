// The shapes and contexts that tests and benches walk, and a layer to run them on: documents, and a
// cache that starts as NaN.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "kernels/attention/attention.h"

namespace mm01 {

struct AttentionCase {
  const char* name;
  int64_t rows;
  int64_t heads, kv_heads;
  int64_t dim = 16;
};

inline constexpr AttentionCase kAttentionCases[] = {
    {"one key", 1, 2, 2},
    {"a page but one", kKvPage - 1, 4, 2},
    {"a page", kKvPage, 2, 1},
    {"a page and one", kKvPage + 1, 3, 3, 48},
    {"a tile but one", 255, 2, 1},
    {"a tile", 256, 8, 1},
    {"a tile and one", 257, 2, 2},
    {"a prime, groups of eight", 331, 16, 2},
    {"the released head", 130, 8, 1, 128},
    {"a wide head", 70, 2, 1, 272},
    {"more heads in a group than an item has rows", 67, 56, 1},
};

// Where the order of the sums changes: pages of 64, tiles of 256, partial results of 1,024.
inline constexpr int64_t kAttentionContexts[] = {1,   63,   64,   65,   255,  256,
                                                 257, 1023, 1024, 1025, 4097, 9000};

// What the projections make of a document: a row is q [H, K], k [G, K] and v [G, K] side by side.
struct AttentionDocument {
  int64_t heads, kv_heads, dim;
  std::vector<float> qkv;

  AttentionDocument(uint64_t stream, int64_t rows, int64_t h, int64_t g, int64_t head_dim = 16)
      : heads(h), kv_heads(g), dim(head_dim), qkv(static_cast<size_t>(rows * width())) {
    for (size_t i = 0; i < qkv.size(); ++i) {
      qkv[i] = static_cast<float>(RandomNormal(3, stream, i));
    }
  }

  int64_t width() const { return (heads + 2 * kv_heads) * dim; }
  int64_t rows() const { return static_cast<int64_t>(qkv.size()) / width(); }
  std::span<float> Query(int64_t row) {
    return std::span(qkv).subspan(static_cast<size_t>(row * width()),
                                  static_cast<size_t>(heads * dim));
  }
  std::span<float> Key(int64_t row) {
    return std::span(qkv).subspan(static_cast<size_t>(row * width() + heads * dim),
                                  static_cast<size_t>(kv_heads * dim));
  }
  std::span<float> Value(int64_t row) {
    return std::span(qkv).subspan(static_cast<size_t>(row * width() + (heads + kv_heads) * dim),
                                  static_cast<size_t>(kv_heads * dim));
  }
};

// One layer's pages, of T = float or bf16, and the table of each sequence: `rows[n]` tokens for
// sequence n, its pages scattered over the pool as `seed` says, two pages left to nobody.
template <typename T>
struct AttentionCache {
  int64_t num_pages = 2, kv_heads, dim;
  std::vector<T> k, v;
  std::vector<float> k_scale, v_scale;
  std::vector<std::vector<int32_t>> tables;

  AttentionCache(std::vector<int64_t> rows, int64_t g, int64_t head_dim = 16, uint64_t seed = 0)
      : kv_heads(g), dim(head_dim) {
    for (const int64_t n : rows) num_pages += (n + kKvPage - 1) / kKvPage;
    std::vector<std::pair<uint64_t, int32_t>> order;
    for (int32_t p = 0; p < num_pages; ++p) {
      order.emplace_back(RandomBits(seed, 0, static_cast<uint64_t>(p)), p);
    }
    std::sort(order.begin(), order.end());
    auto next = order.begin();
    for (const int64_t n : rows) {
      tables.emplace_back();
      for (int64_t at = 0; at < n; at += kKvPage) tables.back().push_back((next++)->second);
    }
    T nan;
    if constexpr (sizeof(T) == 2) {
      nan = ToBF16(std::numeric_limits<float>::quiet_NaN());
    } else {
      nan = std::numeric_limits<float>::quiet_NaN();
    }
    k.assign(static_cast<size_t>(num_pages * kv_heads * dim * kKvPage), nan);
    v = k;
    k_scale.assign(static_cast<size_t>(num_pages * kv_heads), 1.0f);
    v_scale = k_scale;
  }

  PagedKv Tensors() const {
    return {Tensor(k.data(), {num_pages, kv_heads, dim * kKvPage}),
            Tensor(v.data(), {num_pages, kv_heads, kKvPage * dim}),
            Tensor(k_scale.data(), {num_pages, kv_heads}),
            Tensor(v_scale.data(), {num_pages, kv_heads})};
  }
};

// Rows first .. first + count - 1 of a document, for sequence `seq` of a cache that begins at
// `kv_start` and holds `kv_length` keys; -1: all up to the last of these rows.
struct AttentionPiece {
  const AttentionDocument* document;
  int64_t seq, first, count;
  int64_t kv_start = 0;
  int64_t kv_length = -1;
};

// The rows of some pieces end to end, and the tables that the ops want with them.
struct AttentionBatch {
  int64_t heads, kv_heads, dim, num_rows, num_seqs, table_width = 1;
  std::vector<float> qkv;
  std::vector<int64_t> cu = {0}, position, kv_start, kv_length;
  std::vector<int32_t> table;

  AttentionBatch(const std::vector<std::vector<int32_t>>& tables,
                 const std::vector<AttentionPiece>& pieces)
      : heads(pieces[0].document->heads),
        kv_heads(pieces[0].document->kv_heads),
        dim(pieces[0].document->dim),
        num_seqs(static_cast<int64_t>(pieces.size())) {
    for (const auto& t : tables) table_width = std::max<int64_t>(table_width, std::ssize(t));
    for (const AttentionPiece& p : pieces) {
      const auto begin = p.document->qkv.begin() + p.first * p.document->width();
      qkv.insert(qkv.end(), begin, begin + p.count * p.document->width());
      cu.push_back(cu.back() + p.count);
      position.push_back(p.first);
      kv_start.push_back(p.kv_start);
      kv_length.push_back(p.kv_length < 0 ? p.first + p.count - p.kv_start : p.kv_length);
      std::vector<int32_t> pages = tables[static_cast<size_t>(p.seq)];
      pages.resize(static_cast<size_t>(table_width), -1);
      table.insert(table.end(), pages.begin(), pages.end());
    }
    num_rows = cu.back();
  }

  Tensor Part(int64_t first_head, int64_t num_heads) const {
    Tensor t(qkv.data() + first_head * dim, {num_rows, num_heads, dim});
    t.stride[0] = (heads + 2 * kv_heads) * dim;
    return t;
  }
  Tensor Seqs(const std::vector<int64_t>& x) const { return Tensor(x.data(), {std::ssize(x)}); }

  KvStoreArgs Store(const PagedKv& kv) const {
    return {.k = Part(heads, kv_heads),
            .v = Part(heads + kv_heads, kv_heads),
            .cu_seqlens = Seqs(cu),
            .position = Seqs(position),
            .kv_start = Seqs(kv_start),
            .block_table = Tensor(table.data(), {num_seqs, table_width}),
            .kv = kv};
  }
  AttentionArgs Attend(const PagedKv& kv, float* out, float* lse) const {
    return {.q = Part(0, heads),
            .cu_seqlens = Seqs(cu),
            .position = Seqs(position),
            .kv_start = Seqs(kv_start),
            .kv_length = Seqs(kv_length),
            .block_table = Tensor(table.data(), {num_seqs, table_width}),
            .kv = kv,
            .out = Tensor(out, {num_rows, heads, dim}),
            .lse = lse ? Tensor(lse, {num_rows, heads}) : Tensor()};
  }
};

}  // namespace mm01
