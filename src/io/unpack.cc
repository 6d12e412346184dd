#include "io/unpack.h"

#include <bzlib.h>
#include <fmt/core.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <utility>

namespace mm01 {

// Moves bytes from the front of `in` to the front of `out`, both of which then begin behind them.
// False where the data is damaged. `in` is empty only at the end of the file.
class UnpackedFile::Decoder {
 public:
  virtual ~Decoder() = default;
  virtual bool Run(std::span<const std::byte>* in, std::span<char>* out) = 0;
  // Whether the file may end here: not within a stream.
  virtual bool AtBorder() const = 0;
};

namespace {

constexpr size_t kBufferBytes = 1 << 20;
constexpr uint64_t kXzMemoryBytes = uint64_t{256} << 20;

using In = std::span<const std::byte>;
using Out = std::span<char>;

class PlainDecoder final : public UnpackedFile::Decoder {
 public:
  bool Run(In* in, Out* out) override {
    const size_t n = std::min(in->size(), out->size());
    if (n > 0) std::memcpy(out->data(), in->data(), n);
    *in = in->subspan(n);
    *out = out->subspan(n);
    return true;
  }
  bool AtBorder() const override { return true; }
};

// What the C interfaces of these libraries share: cursors into both buffers.
template <typename Stream>
class Cursors {
 public:
  Cursors(Stream* stream, In* in, Out* out) : stream_(stream), in_(in), out_(out) {
    using Next = decltype(stream->next_in);
    stream->next_in = reinterpret_cast<Next>(const_cast<std::byte*>(in->data()));
    stream->avail_in = static_cast<decltype(stream->avail_in)>(in->size());
    stream->next_out = reinterpret_cast<decltype(stream->next_out)>(out->data());
    stream->avail_out = static_cast<decltype(stream->avail_out)>(out->size());
  }
  ~Cursors() {
    *in_ = in_->last(stream_->avail_in);
    *out_ = out_->last(stream_->avail_out);
  }
  Cursors(const Cursors&) = delete;
  Cursors& operator=(const Cursors&) = delete;

 private:
  Stream* stream_;
  In* in_;
  Out* out_;
};

class XzDecoder final : public UnpackedFile::Decoder {
 public:
  XzDecoder() {
    if (lzma_stream_decoder(&stream_, kXzMemoryBytes, LZMA_CONCATENATED) != LZMA_OK) {
      throw std::bad_alloc();
    }
  }
  ~XzDecoder() override { lzma_end(&stream_); }
  bool Run(In* in, Out* out) override {
    const lzma_action action = in->empty() ? LZMA_FINISH : LZMA_RUN;
    const Cursors cursors(&stream_, in, out);
    const lzma_ret result = lzma_code(&stream_, action);
    at_end_ = result == LZMA_STREAM_END;
    return result == LZMA_OK || result == LZMA_STREAM_END || result == LZMA_BUF_ERROR;
  }
  bool AtBorder() const override { return at_end_; }

 private:
  lzma_stream stream_ = LZMA_STREAM_INIT;
  bool at_end_ = false;
};

class GzipDecoder final : public UnpackedFile::Decoder {
 public:
  GzipDecoder() {
    constexpr int kGzipOnly = 16 + MAX_WBITS;
    if (inflateInit2(&stream_, kGzipOnly) != Z_OK) throw std::bad_alloc();
  }
  ~GzipDecoder() override { inflateEnd(&stream_); }
  bool Run(In* in, Out* out) override {
    if (in->empty()) return true;
    if (std::exchange(at_end_, false)) inflateReset(&stream_);
    const Cursors cursors(&stream_, in, out);
    const int result = inflate(&stream_, Z_NO_FLUSH);
    at_end_ = result == Z_STREAM_END;
    return result == Z_OK || result == Z_STREAM_END || result == Z_BUF_ERROR;
  }
  bool AtBorder() const override { return at_end_; }

 private:
  z_stream stream_{};
  bool at_end_ = false;
};

class Bzip2Decoder final : public UnpackedFile::Decoder {
 public:
  Bzip2Decoder() { Begin(); }
  ~Bzip2Decoder() override { BZ2_bzDecompressEnd(&stream_); }
  bool Run(In* in, Out* out) override {
    if (in->empty()) return true;
    if (std::exchange(at_end_, false)) {
      BZ2_bzDecompressEnd(&stream_);
      Begin();
    }
    const Cursors cursors(&stream_, in, out);
    const int result = BZ2_bzDecompress(&stream_);
    at_end_ = result == BZ_STREAM_END;
    return result == BZ_OK || result == BZ_STREAM_END;
  }
  bool AtBorder() const override { return at_end_; }

 private:
  void Begin() {
    stream_ = {};
    if (BZ2_bzDecompressInit(&stream_, 0, 0) != BZ_OK) throw std::bad_alloc();
  }

  bz_stream stream_{};
  bool at_end_ = false;
};

class ZstdDecoder final : public UnpackedFile::Decoder {
 public:
  ZstdDecoder() : stream_(ZSTD_createDStream(), ZSTD_freeDStream) {
    if (!stream_) throw std::bad_alloc();
  }
  bool Run(In* in, Out* out) override {
    ZSTD_inBuffer from{in->data(), in->size(), 0};
    ZSTD_outBuffer to{out->data(), out->size(), 0};
    const size_t result = ZSTD_decompressStream(stream_.get(), &to, &from);
    if (from.pos > 0 || to.pos > 0) at_end_ = result == 0;
    *in = in->subspan(from.pos);
    *out = out->subspan(to.pos);
    return ZSTD_isError(result) == 0;
  }
  bool AtBorder() const override { return at_end_; }

 private:
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream_;
  bool at_end_ = false;
};

std::unique_ptr<UnpackedFile::Decoder> DecoderFor(std::string_view first) {
  if (first.starts_with(std::string_view("\xFD\x37\x7A\x58\x5A\0", 6))) {
    return std::make_unique<XzDecoder>();
  }
  if (first.starts_with("\x1F\x8B")) return std::make_unique<GzipDecoder>();
  if (first.starts_with("\x28\xB5\x2F\xFD")) return std::make_unique<ZstdDecoder>();
  if (first.starts_with("BZh") && first.size() > 9 && first.substr(4, 6) == "1AY&SY") {
    return std::make_unique<Bzip2Decoder>();
  }
  return std::make_unique<PlainDecoder>();
}

}  // namespace

UnpackedFile::UnpackedFile(File file, std::unique_ptr<Decoder> decoder)
    : file_(std::move(file)),
      decoder_(std::move(decoder)),
      buffer_(std::make_unique<std::byte[]>(kBufferBytes)) {}

UnpackedFile::~UnpackedFile() = default;
UnpackedFile::UnpackedFile(UnpackedFile&&) noexcept = default;
UnpackedFile& UnpackedFile::operator=(UnpackedFile&&) noexcept = default;

Result<UnpackedFile> UnpackedFile::Open(const std::string& path) {
  MM01_ASSIGN_OR_RETURN(File file, File::Open(path));
  std::array<char, 16> first{};
  const auto n = std::min(first.size(), static_cast<size_t>(file.size()));
  MM01_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(first).first(n))));
  auto decoder = DecoderFor({first.data(), n});
  return UnpackedFile(std::move(file), std::move(decoder));
}

Status UnpackedFile::Fill() {
  const auto n = std::min<int64_t>(kBufferBytes, file_.size() - offset_);
  const std::span<std::byte> room(buffer_.get(), static_cast<size_t>(n));
  MM01_RETURN_IF_ERROR(file_.Read(offset_, room));
  offset_ += n;
  unread_ = room;
  return Status::Ok();
}

Result<size_t> UnpackedFile::Read(std::span<char> out) {
  Check(!out.empty(), "a read needs room");
  std::span<char> room = out;
  while (room.size() == out.size()) {
    if (unread_.empty() && offset_ < file_.size()) MM01_RETURN_IF_ERROR(Fill());
    const size_t had = unread_.size();
    if (!decoder_->Run(&unread_, &room)) {
      return Status::Invalid(fmt::format("{}: the packed data is damaged near byte {}", path(),
                                         offset_ - static_cast<int64_t>(unread_.size())));
    }
    if (had > 0 || room.size() < out.size()) continue;
    if (!decoder_->AtBorder()) {
      return Status::Invalid(fmt::format(
          "{}: ends within packed data after {} bytes, the file is truncated", path(), offset_));
    }
    break;
  }
  return out.size() - room.size();
}

}  // namespace mm01
