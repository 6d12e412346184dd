#include "model/text01/state.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace mm01 {

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

std::vector<TextState::Piece> TextState::BorderPieces(int32_t slot) const {
  Check(sequence(slot).begin == 0, "only a whole sequence is copied");
  std::vector<Piece> pieces;
  for (const LayerMemory& m : layers_) {
    const int64_t bytes = m.s.bytes() / sizes_.num_slots;
    if (bytes > 0) pieces.push_back({m.s.data() + slot * bytes, bytes});
  }
  return pieces;
}

std::vector<TextState::Piece> TextState::PagePieces(int32_t slot, int64_t index) const {
  if (page_bytes_ == 0) return {};
  const Sequence& s = sequence(slot);
  Check(s.begin == 0 && index < std::ssize(s.pages), "the sequence has no such page");
  std::vector<Piece> pieces;
  for (const LayerMemory& m : layers_) {
    for (const Buffer* pool : {&m.k, &m.v}) {
      const int64_t bytes = pool->bytes() / num_pages_;
      const int64_t page = s.pages[static_cast<size_t>(index)];
      if (bytes > 0) pieces.push_back({pool->data() + page * bytes, bytes});
    }
  }
  return pieces;
}

void TextState::CopyBorder(Queue& queue, int32_t slot, std::byte* out) const {
  Check(length(slot) >= kLightningBlock, "S is not set before the first border");
  for (const Piece& piece : BorderPieces(slot)) {
    queue.CopyToHost(out, piece.data, piece.bytes);
    out += piece.bytes;
  }
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
  for (const Piece& piece : BorderPieces(slot)) {
    queue.CopyToDevice(piece.data, from, piece.bytes);
    from += piece.bytes;
  }
}

// A page is many small pieces. To and from a GPU they go as one, and many pages too.
void TextState::CopyPage(Queue& queue, int32_t slot, int64_t index, std::byte* out) const {
  Check((index + 1) * kKvPage <= length(slot), "the page is not full");
  if (page_bytes_ == 0) return;
  Scratch scratch(queue);
  const bool on_cpu = queue.device() == Device::kCpu;
  std::byte* const gathered = on_cpu ? out : scratch.Get<std::byte>(page_bytes_);
  std::byte* at = gathered;
  for (const Piece& piece : PagePieces(slot, index)) {
    queue.CopyOnDevice(at, piece.data, piece.bytes);
    at += piece.bytes;
  }
  if (!on_cpu) queue.CopyToHost(out, gathered, page_bytes_);
}

void TextState::SetPages(Queue& queue, int32_t slot, int64_t first, int64_t count,
                         const std::byte* from) {
  Check(length(slot) == 0, "a copy goes into an empty slot");
  if (page_bytes_ == 0) return;
  Scratch scratch(queue);
  const std::byte* at = from;
  if (queue.device() != Device::kCpu) {
    auto* gathered = scratch.Get<std::byte>(count * page_bytes_);
    queue.CopyToDevice(gathered, from, count * page_bytes_);
    at = gathered;
  }
  for (int64_t index = first; index < first + count; ++index) {
    for (const Piece& piece : PagePieces(slot, index)) {
      queue.CopyOnDevice(piece.data, at, piece.bytes);
      at += piece.bytes;
    }
  }
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
