#include "model/text01/state.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/check.h"

namespace mm01 {
namespace {

constexpr int64_t kPartBytes = 16 << 20;  // of scratch memory on a GPU, for what is on its way

// Calls copy(pools, pages, bytes) for all pages in all pools, part by part in the order in which
// they are packed. A part is a run of pages, or of pools where a page is large, and has kPartBytes
// at most, or one piece.
template <typename F>
void ForEachPart(std::span<const PagePool> pools, std::span<const int32_t> pages, const F& copy) {
  const int64_t page_bytes = PackedPageBytes(pools);
  if (page_bytes == 0) return;
  if (page_bytes <= kPartBytes) {
    const auto most = static_cast<size_t>(kPartBytes / page_bytes);
    for (size_t begin = 0; begin < pages.size(); begin += most) {
      const auto part = pages.subspan(begin, std::min(most, pages.size() - begin));
      copy(pools, part, std::ssize(part) * page_bytes);
    }
    return;
  }
  for (size_t page = 0; page < pages.size(); ++page) {
    for (size_t begin = 0, end = 0; begin < pools.size(); begin = end) {
      int64_t bytes = 0;
      for (; end < pools.size() && (end == begin || bytes + pools[end].page_bytes <= kPartBytes);
           ++end) {
        bytes += pools[end].page_bytes;
      }
      copy(pools.subspan(begin, end - begin), pages.subspan(page, 1), bytes);
    }
  }
}

// Pages to the host, as GatherPages packs them.
void Pack(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
          std::byte* out) {
  ForEachPart(pools, pages, [&](auto part_pools, auto part_pages, int64_t bytes) {
    if (queue.device() == Device::kCpu) {
      GatherPages(queue, part_pools, part_pages, out);
    } else {
      Scratch scratch(queue);
      auto* gathered = scratch.Get<std::byte>(bytes);
      GatherPages(queue, part_pools, part_pages, gathered);
      queue.CopyToHost(out, gathered, bytes);
    }
    out += bytes;
  });
}

// The way back.
void Unpack(Queue& queue, std::span<const PagePool> pools, std::span<const int32_t> pages,
            const std::byte* from) {
  ForEachPart(pools, pages, [&](auto part_pools, auto part_pages, int64_t bytes) {
    if (queue.device() == Device::kCpu) {
      ScatterPages(queue, part_pools, part_pages, from);
    } else {
      Scratch scratch(queue);
      auto* gathered = scratch.Get<std::byte>(bytes);
      queue.CopyToDevice(gathered, from, bytes);
      ScatterPages(queue, part_pools, part_pages, gathered);
    }
    from += bytes;
  });
}

}  // namespace

TextState::TextState(const TextConfig& config, const Shard& shard, const StateSizes& sizes)
    : sizes_(sizes),
      heads_(shard.heads.size()),
      kv_heads_(shard.kv_heads.size()),
      dim_(config.head_dim),
      kinds_(config.layers) {
  Check(sizes.num_slots > 0 && sizes.max_tokens >= 0, "a state needs a slot");
  Check(sizes.kv_type == DType::kF32 || sizes.kv_type == DType::kBF16,
        "keys and values are float32 or bf16");
  const bool has_softmax = config.num_softmax_layers() > 0;
  num_pages_ = (sizes.max_tokens + kKvPage - 1) / kKvPage + sizes.num_slots;
  const int64_t rows = sizes.num_slots * heads_ * kLightningBlock * dim_;
  const int64_t page = kv_heads_ * kKvPage * dim_ * SizeOf(sizes.kv_type);
  for (LayerKind kind : kinds_) {
    LayerMemory m;
    if (kind == LayerKind::kLightning) {
      m.s = Buffer(sizes.num_slots * heads_ * dim_ * dim_ * SizeOf(DType::kF32), sizes.device);
      m.k_rows = Buffer(rows * SizeOf(sizes.row_type), sizes.device);
      m.v_rows = Buffer(rows * SizeOf(sizes.row_type), sizes.device);
      lightning_bytes_ += m.s.bytes() + m.k_rows.bytes() + m.v_rows.bytes();
    } else {
      m.k = Buffer(num_pages_ * page, sizes.device);
      m.v = Buffer(num_pages_ * page, sizes.device);
      if (sizes.device == Device::kCpu) {
        m.k_scale = Buffer(num_pages_ * kv_heads_ * SizeOf(DType::kF32));
        m.v_scale = Buffer(num_pages_ * kv_heads_ * SizeOf(DType::kF32));
        std::fill_n(m.k_scale.As<float>(), num_pages_ * kv_heads_, 1.0f);
        std::fill_n(m.v_scale.As<float>(), num_pages_ * kv_heads_, 1.0f);
      }
      page_bytes_ += 2 * page;
    }
    layers_.push_back(std::move(m));
  }
  sequences_.resize(static_cast<size_t>(sizes.num_slots));
  if (!has_softmax) return;
  for (int64_t p = num_pages_ - 1; p >= 0; --p) free_pages_.push_back(static_cast<int32_t>(p));
}

const TextState::Sequence& TextState::sequence(int32_t slot) const {
  Check(0 <= slot && slot < sizes_.num_slots, "no such slot");
  const Sequence& s = sequences_[static_cast<size_t>(slot)];
  Check(s.open, "the slot holds no sequence");
  return s;
}

TextState::Sequence& TextState::sequence(int32_t slot) {
  return const_cast<Sequence&>(static_cast<const TextState&>(*this).sequence(slot));
}

Result<int32_t> TextState::Open(int64_t begin) {
  for (int32_t slot = 0; slot < sizes_.num_slots; ++slot) {
    Sequence& s = sequences_[static_cast<size_t>(slot)];
    if (s.open) continue;
    s = {.open = true, .begin = begin};
    return slot;
  }
  return Status::TooLarge(fmt::format("all {} sequence slots are in use", sizes_.num_slots));
}

void TextState::Close(int32_t slot) {
  Sequence& s = sequence(slot);
  free_pages_.insert(free_pages_.end(), s.pages.rbegin(), s.pages.rend());
  s = {};
}

Status TextState::Reserve(int32_t slot, int64_t num_tokens) {
  Sequence& s = sequence(slot);
  if (page_bytes_ == 0) return Status::Ok();
  const int64_t pages = (s.length + num_tokens + kKvPage - 1) / kKvPage;
  const int64_t missing = pages - static_cast<int64_t>(s.pages.size());
  if (missing > static_cast<int64_t>(free_pages_.size())) {
    return Status::TooLarge(fmt::format(
        "{} tokens of context do not fit: keys and values have room for {} in all, {} of it free",
        s.length + num_tokens, max_tokens(), static_cast<int64_t>(free_pages_.size()) * kKvPage));
  }
  for (int64_t i = 0; i < missing; ++i) {
    s.pages.push_back(free_pages_.back());
    free_pages_.pop_back();
  }
  return Status::Ok();
}

void TextState::Advance(int32_t slot, int64_t num_tokens) {
  Sequence& s = sequence(slot);
  s.length += num_tokens;
  Check(page_bytes_ == 0 || s.length <= static_cast<int64_t>(s.pages.size()) * kKvPage,
        "the sequence outgrew what was reserved");
}

void TextState::Truncate(int32_t slot, int64_t length) {
  Sequence& s = sequence(slot);
  Check(s.length / kLightningBlock * kLightningBlock <= length && length <= s.length,
        "a sequence can be cut back to the last border only");
  s.length = length;
}

int64_t TextState::border_bytes() const {
  int64_t sum = 0;
  for (const LayerMemory& m : layers_) sum += m.s.bytes() / sizes_.num_slots;
  return sum;
}

std::vector<PagePool> TextState::BorderPools() const {
  std::vector<PagePool> pools;
  for (const LayerMemory& m : layers_) {
    if (m.s.bytes() > 0) pools.push_back({m.s.data(), m.s.bytes() / sizes_.num_slots});
  }
  return pools;
}

std::vector<PagePool> TextState::KvPools() const {
  std::vector<PagePool> pools;
  for (const LayerMemory& m : layers_) {
    for (const Buffer* pool : {&m.k, &m.v}) {
      if (pool->bytes() > 0) pools.push_back({pool->data(), pool->bytes() / num_pages_});
    }
  }
  return pools;
}

std::span<const int32_t> TextState::PagesOf(int32_t slot, int64_t first, int64_t count) const {
  const Sequence& s = sequence(slot);
  Check(s.begin == 0, "only a whole sequence is copied");
  Check(0 <= first && 0 <= count && first + count <= std::ssize(s.pages),
        "the sequence has no such pages");
  return std::span(s.pages).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
}

void TextState::CopyBorder(Queue& queue, int32_t slot, std::byte* out) const {
  Check(length(slot) >= kLightningBlock, "S is not set before the first border");
  Check(begin(slot) == 0, "only a whole sequence is copied");
  Pack(queue, BorderPools(), {&slot, 1}, out);
}

void TextState::SetBorder(Queue& queue, int32_t slot, const std::byte* from) {
  Check(length(slot) == 0, "a copy goes into an empty slot");
  WriteBorder(queue, slot, from);
}

void TextState::Rewind(Queue& queue, int32_t slot, int64_t border, const std::byte* from) {
  Sequence& s = sequence(slot);
  Check(0 <= border && border <= s.length && border % kLightningBlock == 0,
        "a sequence goes back to a border that it has passed");
  s.length = border;
  if (border > 0) WriteBorder(queue, slot, from);
}

void TextState::WriteBorder(Queue& queue, int32_t slot, const std::byte* from) {
  Check(begin(slot) == 0, "only a whole sequence is copied");
  Unpack(queue, BorderPools(), {&slot, 1}, from);
}

void TextState::CopyPages(Queue& queue, int32_t slot, int64_t first, int64_t count,
                          std::byte* out) const {
  Check((first + count) * kKvPage <= length(slot), "the pages are not full");
  if (page_bytes_ > 0) Pack(queue, KvPools(), PagesOf(slot, first, count), out);
}

void TextState::SetPages(Queue& queue, int32_t slot, int64_t first, int64_t count,
                         const std::byte* from) {
  Check(length(slot) == 0, "a copy goes into an empty slot");
  if (page_bytes_ > 0) Unpack(queue, KvPools(), PagesOf(slot, first, count), from);
}

int64_t TextState::num_open() const {
  return std::ranges::count_if(sequences_, &Sequence::open);
}

LightningState TextState::lightning(int64_t layer) const {
  Check(kinds_[static_cast<size_t>(layer)] == LayerKind::kLightning, "not a lightning layer");
  const LayerMemory& m = layers_[static_cast<size_t>(layer)];
  const int64_t n = sizes_.num_slots, row = kLightningBlock * dim_;
  const auto rows = [&](const Buffer& b) {
    return Tensor(sizes_.row_type, b.data(), {n, heads_, row});
  };
  return {.s = Tensor(m.s.As<float>(), {n, heads_, dim_, dim_}),
          .k_rows = rows(m.k_rows),
          .v_rows = rows(m.v_rows)};
}

PagedKv TextState::kv(int64_t layer) const {
  Check(kinds_[static_cast<size_t>(layer)] == LayerKind::kSoftmax, "not a softmax layer");
  const LayerMemory& m = layers_[static_cast<size_t>(layer)];
  const int64_t row = kKvPage * dim_;
  const auto pool = [&](const Buffer& b) {
    return Tensor(sizes_.kv_type, b.data(), {num_pages_, kv_heads_, row});
  };
  const auto scales = [&](const Buffer& b) {
    return b.bytes() ? Tensor(b.As<float>(), {num_pages_, kv_heads_}) : Tensor();
  };
  return {
      .k = pool(m.k), .v = pool(m.v), .k_scale = scales(m.k_scale), .v_scale = scales(m.v_scale)};
}

int64_t TextState::kv_bytes_used() const {
  if (page_bytes_ == 0) return 0;
  return (num_pages_ - static_cast<int64_t>(free_pages_.size())) * page_bytes_;
}

}  // namespace mm01
