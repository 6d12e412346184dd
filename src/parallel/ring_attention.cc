#include "parallel/ring_attention.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "base/check.h"

namespace mm01 {
namespace {

// The pages of one rank's part, in order and without gaps, and where they stand.
struct Part {
  struct Place {
    int64_t start = 0;
    int64_t length = 0;
  };
  Place place;
  std::vector<std::byte> k, v;
  std::vector<float> k_scale, v_scale;
};

void CopyPages(const Tensor& pool, const Tensor& table, int64_t num_pages, std::byte* out) {
  const auto pages = table.As<const int32_t, 2>();
  const int64_t bytes = pool.stride[0] * SizeOf(pool.dtype);
  for (int64_t i = 0; i < num_pages; ++i) {
    std::memcpy(out + i * bytes, static_cast<const std::byte*>(pool.data) + pages(0, i) * bytes,
                static_cast<size_t>(bytes));
  }
}

Part Collect(const AttentionArgs& a, int64_t most_pages) {
  Part part;
  part.place = {a.kv_start.As<const int64_t, 1>()(0), a.kv_length.As<const int64_t, 1>()(0)};
  const int64_t pages = (part.place.length + kKvPage - 1) / kKvPage;
  const auto bytes = static_cast<size_t>(most_pages * a.kv.k.stride[0] * SizeOf(a.kv.k.dtype));
  const auto scales = static_cast<size_t>(most_pages * a.kv.k.dim(1));
  part.k.resize(bytes);
  part.v.resize(bytes);
  part.k_scale.resize(scales);
  part.v_scale.resize(scales);
  CopyPages(a.kv.k, a.block_table, pages, part.k.data());
  CopyPages(a.kv.v, a.block_table, pages, part.v.data());
  CopyPages(a.kv.k_scale, a.block_table, pages, reinterpret_cast<std::byte*>(part.k_scale.data()));
  CopyPages(a.kv.v_scale, a.block_table, pages, reinterpret_cast<std::byte*>(part.v_scale.data()));
  return part;
}

// Everything of `part` goes to the next rank, and the previous rank's comes.
void Pass(Group& group, Part& part, Part& room) {
  group.SendRecv(std::span<const Part::Place>(&part.place, 1), std::span(&room.place, 1), 1);
  group.SendRecv(std::span<const std::byte>(part.k), std::span(room.k), 1);
  group.SendRecv(std::span<const std::byte>(part.v), std::span(room.v), 1);
  group.SendRecv(std::span<const float>(part.k_scale), std::span(room.k_scale), 1);
  group.SendRecv(std::span<const float>(part.v_scale), std::span(room.v_scale), 1);
  std::swap(part, room);
}

Tensor Reshaped(const Tensor& like, void* data, int64_t pages) {
  Tensor t = like;
  t.data = data;
  t.shape[0] = pages;
  return t;
}

}  // namespace

void RingAttention(Queue& queue, Group& group, const AttentionArgs& a) {
  Check(a.kv_start.dim(0) == 1, "ranks split one sequence");
  const int64_t rows = a.q.dim(0), heads = a.q.dim(1), dim = a.q.dim(2);
  const int64_t mine = (a.kv_length.As<const int64_t, 1>()(0) + kKvPage - 1) / kKvPage;
  std::vector<int64_t> pages(static_cast<size_t>(group.size()));
  group.AllGather(std::span<const int64_t>(&mine, 1), std::span(pages));
  const int64_t most = *std::ranges::max_element(pages);

  std::vector<float> lse(static_cast<size_t>(rows * heads)),
      other(static_cast<size_t>(a.out.size()));
  std::vector<float> other_lse(lse.size());
  AttentionArgs local = a;
  local.lse = Tensor(lse.data(), {rows, heads});
  Attention(queue, local);

  Part part = Collect(a, most), room = part;
  std::vector<int32_t> table(static_cast<size_t>(most));
  std::iota(table.begin(), table.end(), 0);
  const int64_t last = a.position.As<const int64_t, 1>()(0) + rows - 1;
  for (int step = 1; step < group.size(); ++step) {
    Pass(group, part, room);
    if (part.place.start > last || part.place.length == 0) continue;
    AttentionArgs args = a;
    args.kv_start = Tensor(&part.place.start, {1});
    args.kv_length = Tensor(&part.place.length, {1});
    args.block_table = Tensor(table.data(), {1, most});
    args.kv = {.k = Reshaped(a.kv.k, part.k.data(), most),
               .v = Reshaped(a.kv.v, part.v.data(), most),
               .k_scale = Reshaped(a.kv.k_scale, part.k_scale.data(), most),
               .v_scale = Reshaped(a.kv.v_scale, part.v_scale.data(), most)};
    args.out = Tensor(other.data(), {rows, heads, dim});
    args.lse = Tensor(other_lse.data(), {rows, heads});
    Attention(queue, args);
    MergeAttention(queue, a.out, local.lse, args.out, args.lse);
  }
}

}  // namespace mm01
