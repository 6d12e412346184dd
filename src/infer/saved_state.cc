#include "infer/saved_state.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "infer/session.h"
#include "io/safetensors.h"

namespace mm01::infer {
namespace {

constexpr const char* kStateFormat = "mm01-state";
constexpr const char* kStateVersion = "1";
constexpr const char* kChecksum = "checksum";

using Metadata = std::map<std::string, std::string>;
using Digest = std::array<std::byte, 16>;

// The hash of metadata, then of each tensor's name and bytes, in the order of the file.
class StateHash {
 public:
  explicit StateHash(const Metadata& metadata) : state_(XXH3_createState(), XXH3_freeState) {
    XXH3_128bits_reset(state_.get());
    for (const auto& [key, value] : metadata) Add(key + "=" + value + ";");
  }
  void Add(std::string_view text) { XXH3_128bits_update(state_.get(), text.data(), text.size()); }
  void Add(std::span<const std::byte> data) {
    XXH3_128bits_update(state_.get(), data.data(), data.size());
  }
  Digest Value() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
    Digest digest;
    std::memcpy(digest.data(), canonical.digest, digest.size());
    return digest;
  }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

std::string LayerName(int64_t layer, const char* what) {
  return fmt::format("layer.{}.{}", layer, what);
}

// The tensors of a state of `tokens` tokens, in the order of the file.
std::vector<TensorInfo> Layout(const TextConfig& c, DType kv, int64_t tokens) {
  std::vector<TensorInfo> all;
  all.push_back({.name = "tokens", .dtype = DType::kI32, .shape = {tokens}});
  all.push_back({.name = "logits", .dtype = DType::kF32, .shape = {c.vocab_size}});
  const int64_t since = tokens % kLightningBlock;
  for (int64_t i = 0; i < c.num_layers(); ++i) {
    const int64_t h = c.num_heads, d = c.head_dim;
    if (c.layers[static_cast<size_t>(i)] == LayerKind::kLightning) {
      all.push_back({LayerName(i, "state"), DType::kF32, {h, d, d}});
      all.push_back({LayerName(i, "k_rows"), DType::kF32, {since, h, d}});
      all.push_back({LayerName(i, "v_rows"), DType::kF32, {since, h, d}});
    } else {
      all.push_back({LayerName(i, "k"), kv, {tokens, c.num_kv_heads, d}});
      all.push_back({LayerName(i, "v"), kv, {tokens, c.num_kv_heads, d}});
    }
  }
  all.push_back({.name = kChecksum, .dtype = DType::kU8, .shape = {16}});
  return all;
}

Status CheckHeader(const SafetensorsFile& file) {
  const Metadata& m = file.metadata();
  const auto format = m.find("format"), version = m.find("version");
  if (format == m.end() || format->second != kStateFormat || version == m.end()) {
    return Status::Invalid(file.path() +
                           " is no saved state: its metadata has no format mm01-state");
  }
  if (version->second != kStateVersion) {
    return Status::Unsupported(
        fmt::format("{}: saved state of version {}, this program reads version {}", file.path(),
                    version->second, kStateVersion));
  }
  for (const char* key : {"model", "config", "kv"}) {
    if (!m.contains(key)) {
      return Status::Invalid(
          fmt::format("{}: the saved state does not say its {}", file.path(), key));
    }
  }
  if (!file.Find("tokens") || !file.Find(kChecksum)) {
    return Status::Invalid(file.path() + ": the saved state has no tokens or no checksum");
  }
  return Status::Ok();
}

Status CheckHash(const SafetensorsFile& file) {
  StateHash hash(file.metadata());
  std::vector<std::byte> piece(1 << 20);
  for (const TensorInfo& t : file.tensors()) {
    if (t.name == kChecksum || t.bytes == 0) continue;
    hash.Add(t.name);
    for (int64_t at = 0; at < t.bytes; at += static_cast<int64_t>(piece.size())) {
      const auto n = std::min(t.bytes - at, static_cast<int64_t>(piece.size()));
      const auto part = std::span(piece).first(static_cast<size_t>(n));
      MM01_RETURN_IF_ERROR(file.Read(t, at, part));
      hash.Add(part);
    }
  }
  MM01_ASSIGN_OR_RETURN(const auto stored, file.ReadAll<uint8_t>(*file.Find(kChecksum)));
  const Digest digest = hash.Value();
  if (stored.size() == digest.size() &&
      std::memcmp(stored.data(), digest.data(), digest.size()) == 0) {
    return Status::Ok();
  }
  return Status::Invalid(file.path() + " is damaged: its checksum does not match its contents");
}

// Moves one sequence between the state's layout and the file's, in pieces of rows. `each` gets the
// bytes of the next piece: to write them out, or to fill them in.
using Piece = std::function<Status(std::span<std::byte>)>;

// Part of the state's memory where the CPU can work on it: the memory itself, or on a GPU a copy
// that WriteBack returns.
template <typename T>
class Window {
 public:
  Window(Queue& queue, T* memory, int64_t count)
      : queue_(queue), memory_(memory), bytes_(count * static_cast<int64_t>(sizeof(T))) {
    if (queue.device() == Device::kCpu) return;
    copy_.resize(static_cast<size_t>(count));
    queue.CopyToHost(copy_.data(), memory, bytes_);
  }
  T* data() { return copy_.empty() ? memory_ : copy_.data(); }
  void WriteBack() {
    if (!copy_.empty()) queue_.CopyToDevice(memory_, copy_.data(), bytes_);
  }

 private:
  Queue& queue_;
  T* memory_;
  int64_t bytes_;
  std::vector<T> copy_;
};

float Exactly(float x, float) {
  return x;
}
bf16 Exactly(bf16 x, bf16) {
  return x;
}
float Exactly(bf16 x, float) {
  return ToFloat(x);
}
bf16 Exactly(float x, bf16) {
  return ToBF16(x);
}

// How rows of a block or a page lie in memory: as columns of panels [heads][B / 16][dim][16], or as
// rows [heads][B][dim].
enum class RowLayout { kPanels, kRows };

// Between rows [count, heads, dim] of the file and memory that holds them. Both hold the same
// numbers, though bf16 in memory may be float32 in the file.
template <typename F, typename M>
void MoveRows(bool to_state, F* rows, int64_t count, int64_t heads, int64_t dim, M* memory,
              RowLayout layout) {
  const bool panels = layout == RowLayout::kPanels;
  const int64_t step = panels ? kPanel : 1;
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t first = panels ? r / kPanel * dim * kPanel + r % kPanel : r * dim;
      M* at = memory + h * kKvPage * dim + first;
      F* row = rows + (r * heads + h) * dim;
      for (int64_t i = 0; i < dim; ++i) {
        if (to_state) {
          at[i * step] = Exactly(row[i], M());
        } else {
          row[i] = Exactly(at[i * step], F());
        }
      }
    }
  }
}

template <typename F, typename M>
Status MovePiece(bool to_state, Queue& queue, int64_t count, int64_t heads, int64_t dim, M* memory,
                 RowLayout layout, const Piece& each) {
  std::vector<F> rows(static_cast<size_t>(count * heads * dim));
  const auto bytes = std::as_writable_bytes(std::span(rows));
  Window<M> window(queue, memory, heads * kKvPage * dim);
  if (!to_state) MoveRows(false, rows.data(), count, heads, dim, window.data(), layout);
  MM01_RETURN_IF_ERROR(each(bytes));
  if (!to_state) return Status::Ok();
  MoveRows(true, rows.data(), count, heads, dim, window.data(), layout);
  window.WriteBack();
  return Status::Ok();
}

template <typename T>
Status MovePages(bool to_state, Queue& queue, const TextState& state, int32_t slot,
                 const Tensor& pool, int64_t dim, RowLayout layout, const Piece& each) {
  const int64_t tokens = state.length(slot);
  for (int64_t at = 0; at < tokens; at += kKvPage) {
    const int32_t page = state.pages(slot)[static_cast<size_t>(at / kKvPage)];
    T* memory = static_cast<T*>(pool.data) + page * pool.stride[0];
    MM01_RETURN_IF_ERROR((MovePiece<T, T>(to_state, queue, std::min(kKvPage, tokens - at),
                                          pool.dim(1), dim, memory, layout, each)));
  }
  return Status::Ok();
}

template <typename M>
Status MoveSlotRows(bool to_state, Queue& queue, const TextConfig& c, const Tensor& rows,
                    int32_t slot, int64_t count, RowLayout layout, const Piece& each) {
  M* memory = static_cast<M*>(rows.data) + slot * rows.stride[0];
  return MovePiece<float, M>(to_state, queue, count, c.num_heads, c.head_dim, memory, layout, each);
}

Status MoveState(bool to_state, Queue& queue, const TextConfig& c, const TextState& state,
                 int32_t slot, const Piece& each) {
  const int64_t since = state.length(slot) % kLightningBlock, d = c.head_dim;
  // On the CPU keys lie in panels, values in rows; on a GPU all in rows.
  const RowLayout keys = state.device() == Device::kCpu ? RowLayout::kPanels : RowLayout::kRows;
  for (int64_t i = 0; i < c.num_layers(); ++i) {
    if (c.layers[static_cast<size_t>(i)] == LayerKind::kLightning) {
      const LightningState s = state.lightning(i);
      const int64_t count = c.num_heads * d * d;
      Window<float> matrix(queue, static_cast<float*>(s.s.data) + slot * s.s.stride[0], count);
      const std::span numbers(matrix.data(), static_cast<size_t>(count));
      // Before the first border S is not set; it is saved as the zero that it stands for.
      if (state.length(slot) < kLightningBlock) std::ranges::fill(numbers, 0.0f);
      MM01_RETURN_IF_ERROR(each(std::as_writable_bytes(numbers)));
      if (to_state) matrix.WriteBack();
      const auto move = state.row_type() == DType::kBF16 ? MoveSlotRows<bf16> : MoveSlotRows<float>;
      MM01_RETURN_IF_ERROR(move(to_state, queue, c, s.k_rows, slot, since, keys, each));
      MM01_RETURN_IF_ERROR(move(to_state, queue, c, s.v_rows, slot, since, RowLayout::kRows, each));
      continue;
    }
    const PagedKv kv = state.kv(i);
    const auto move = state.kv_type() == DType::kBF16 ? MovePages<bf16> : MovePages<float>;
    MM01_RETURN_IF_ERROR(move(to_state, queue, state, slot, kv.k, d, keys, each));
    MM01_RETURN_IF_ERROR(move(to_state, queue, state, slot, kv.v, d, RowLayout::kRows, each));
  }
  return Status::Ok();
}

}  // namespace

Result<SavedStateInfo> InspectState(const std::string& path) {
  MM01_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  MM01_RETURN_IF_ERROR(CheckHeader(file));
  MM01_RETURN_IF_ERROR(CheckHash(file));
  SavedStateInfo info{.version = 1,
                      .model = file.metadata().at("model"),
                      .kv = file.metadata().at("kv"),
                      .num_tokens = file.Find("tokens")->num_elements()};
  MM01_ASSIGN_OR_RETURN(info.config, ParseJson(file.metadata().at("config"), path));
  for (const TensorInfo& t : file.tensors()) {
    if (t.name.ends_with(".state") || t.name.ends_with("_rows")) info.state_bytes += t.bytes;
    if (t.name.ends_with(".k") || t.name.ends_with(".v")) info.kv_bytes += t.bytes;
  }
  return info;
}

Status Session::Save(const std::string& path) const {
  if (tokens_.empty()) return Status::Invalid("nothing has been read, so there is nothing to save");
  const TextConfig& c = engine_->config();
  const TextState& state = engine_->state();
  const Metadata metadata{{"format", kStateFormat},
                          {"version", kStateVersion},
                          {"model", fmt::format("{:016x}", engine_->fingerprint())},
                          {"config", JsonText(ToJson(c))},
                          {"kv", ToString(state.kv_type())}};
  const std::vector<TensorInfo> layout = Layout(c, state.kv_type(), length());
  MM01_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                        SafetensorsWriter::Create(path, layout, metadata));

  // Pieces come in the order of the layout; a name enters the hash where its tensor begins. Tensors
  // without elements have no place in a file's order, and stay out.
  StateHash hash(metadata);
  size_t next = 0;
  int64_t left = 0;
  const auto append = [&](std::span<const std::byte> data) -> Status {
    if (data.empty()) return Status::Ok();
    while (left == 0) {
      left = writer.tensors()[next].bytes;
      if (left > 0) hash.Add(layout[next].name);
      ++next;
    }
    left -= static_cast<int64_t>(data.size());
    hash.Add(data);
    return writer.Append(data);
  };
  MM01_RETURN_IF_ERROR(append(std::as_bytes(std::span(tokens_))));
  MM01_RETURN_IF_ERROR(append(std::as_bytes(logits())));
  MM01_RETURN_IF_ERROR(MoveState(false, engine_->queue(), c, state, slot_, append));
  const Digest digest = hash.Value();
  MM01_RETURN_IF_ERROR(writer.Append(digest));
  return writer.Finish();
}

Result<Session> Session::Load(Engine& engine, const std::string& path) {
  MM01_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  MM01_RETURN_IF_ERROR(CheckHeader(file));
  const std::string model = fmt::format("{:016x}", engine.fingerprint());
  if (file.metadata().at("model") != model) {
    return Status::Invalid(fmt::format(
        "{} is the state of model {} (weights, types of weights and cache), the model loaded is {}",
        path, file.metadata().at("model"), model));
  }
  MM01_RETURN_IF_ERROR(CheckHash(file));
  const int64_t tokens = file.Find("tokens")->num_elements();
  for (const TensorInfo& wanted : Layout(engine.config(), engine.state().kv_type(), tokens)) {
    const TensorInfo* found = file.Find(wanted.name);
    if (!found || found->dtype != wanted.dtype || found->shape != wanted.shape) {
      return Status::Invalid(
          fmt::format("{}: tensor {} is missing or misshapen", path, wanted.name));
    }
  }

  MM01_ASSIGN_OR_RETURN(Session session, Session::Open(engine));
  MM01_ASSIGN_OR_RETURN(session.tokens_, file.ReadAll<int32_t>(*file.Find("tokens")));
  const int64_t vocabulary = engine.config().vocab_size;
  for (const int32_t id : session.tokens_) {
    if (id >= 0 && id < vocabulary) continue;
    return Status::Invalid(
        fmt::format("{}: the saved text holds token {}, wanted 0 to {}", path, id, vocabulary - 1));
  }
  MM01_ASSIGN_OR_RETURN(session.logits_, file.ReadAll<float>(*file.Find("logits")));
  MM01_RETURN_IF_ERROR(engine.state().Reserve(session.slot_, tokens));
  engine.state().Advance(session.slot_, tokens);
  // Pieces come in the order of the file, which is that of Layout: checked above by name.
  const std::vector<TensorInfo> layout = Layout(engine.config(), engine.state().kv_type(), tokens);
  size_t next = 2;
  int64_t at = 0;
  const auto fill = [&](std::span<std::byte> data) -> Status {
    if (data.empty()) return Status::Ok();
    while (at == file.Find(layout[next].name)->bytes) {
      ++next;
      at = 0;
    }
    MM01_RETURN_IF_ERROR(file.Read(*file.Find(layout[next].name), at, data));
    at += static_cast<int64_t>(data.size());
    return Status::Ok();
  };
  MM01_RETURN_IF_ERROR(
      MoveState(true, engine.queue(), engine.config(), engine.state(), session.slot_, fill));
  return session;
}

}  // namespace mm01::infer
