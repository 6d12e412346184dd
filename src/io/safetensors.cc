#include "io/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>

#include "base/json.h"
#include "io/checked.h"

namespace mm01 {
namespace {

static_assert(std::endian::native == std::endian::little, "lengths and data are little-endian");

constexpr int64_t kLengthBytes = 8;
constexpr size_t kMaxDims = 32;
constexpr std::string_view kMetadataKey = "__metadata__";

struct NamedDType {
  std::string_view name;
  DType dtype;
};
constexpr NamedDType kDTypes[] = {
    {"F64", DType::kF64},   {"F32", DType::kF32},        {"F16", DType::kF16},
    {"BF16", DType::kBF16}, {"F8_E4M3", DType::kF8E4M3}, {"F8_E5M2", DType::kF8E5M2},
    {"I64", DType::kI64},   {"I32", DType::kI32},        {"I16", DType::kI16},
    {"I8", DType::kI8},     {"U64", DType::kU64},        {"U32", DType::kU32},
    {"U16", DType::kU16},   {"U8", DType::kU8},          {"BOOL", DType::kBool}};

std::string_view NameOf(DType dtype) {
  for (const NamedDType& known : kDTypes) {
    if (known.dtype == dtype) return known.name;
  }
  Fail("an element type without a name in safetensors");
}

std::string KnownDTypes() {
  std::string names;
  for (const NamedDType& known : kDTypes) {
    names += (names.empty() ? "" : ", ");
    names += known.name;
  }
  return names;
}

std::string ToString(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// The bytes of a shape, or nothing where they overflow. Dims of 0 are left out at first, so that
// strides and products in any order fit too: [0, 2^40, 2^40] is refused.
std::optional<int64_t> BytesOf(const std::vector<int64_t>& shape, DType dtype) {
  std::optional<int64_t> bytes = SizeOf(dtype);
  bool is_empty = false;
  for (int64_t dim : shape) {
    if (dim == 0) is_empty = true;
    if (dim != 0 && bytes) bytes = CheckedMul(*bytes, dim);
  }
  return is_empty && bytes ? 0 : bytes;
}

// Tells a reader who picked the wrong file what it is; empty if the bytes say nothing.
std::string_view OtherFormat(std::string_view first_bytes) {
  if (first_bytes.starts_with("PK\x03\x04")) return "a zip archive, as PyTorch writes its pickles";
  if (first_bytes.size() >= 2 && first_bytes[0] == '\x80' && first_bytes[1] <= 5) return "a pickle";
  return {};
}

// Builds the header while the JSON is read: no value tree, so depth costs no stack and memory stays
// linear in what is kept.
class HeaderReader : public JsonEvents {
 public:
  explicit HeaderReader(SafetensorsHeader* header) : header_(*header) {}

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a truth value"); }
  // The parser calls this for numbers with a minus sign only, -0 among them.
  bool number_integer(number_integer_t value) override {
    return Unexpected(fmt::format("the negative number {}", value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return Unexpected("the number " + Quoted(text));
  }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (next_ != Next::kDim && next_ != Next::kOffset) {
      return Unexpected(fmt::format("the number {}", value));
    }
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Unexpected(fmt::format("the number {}", value));
    }
    if (next_ == Next::kDim && tensor_.shape.size() == kMaxDims) {
      code_ = Code::kUnsupported;
      return Refuse(fmt::format("more than {} dims are not built", kMaxDims));
    }
    (next_ == Next::kDim ? tensor_.shape : offsets_).push_back(static_cast<int64_t>(value));
    return offsets_.size() <= 2 || Refuse("data_offsets holds more than 2 numbers, wanted 2");
  }

  bool string(string_t& text) override {
    if (next_ == Next::kMetadataText) {
      if (!header_.metadata.try_emplace(std::move(key_), std::move(text)).second) {
        return Refuse(Quoted(key_) + " stands twice in __metadata__");
      }
      next_ = Next::kMetadataKey;
      return true;
    }
    if (next_ != Next::kDType) return Unexpected("the text " + Quoted(text));
    for (const NamedDType& known : kDTypes) {
      if (known.name != text) continue;
      tensor_.dtype = known.dtype;
      next_ = Next::kField;
      return true;
    }
    code_ = Code::kUnsupported;
    return Refuse(fmt::format("dtype {} is not one of {}", Quoted(text), KnownDTypes()));
  }

  bool start_object(std::size_t) override {
    switch (next_) {
      case Next::kHeader:
        next_ = Next::kName;
        return true;
      case Next::kMetadata:
        next_ = Next::kMetadataKey;
        return true;
      case Next::kTensor:
        next_ = Next::kField;
        has_dtype_ = has_shape_ = has_offsets_ = false;
        offsets_.clear();
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool end_object() override {
    if (next_ == Next::kMetadataKey) {
      next_ = Next::kName;
    } else if (next_ == Next::kField) {
      next_ = Next::kName;
      if (!has_dtype_ || !has_shape_ || !has_offsets_) {
        return Refuse("wanted dtype, shape and data_offsets, one is missing");
      }
      header_.tensors.push_back(std::exchange(tensor_, {}));
    }
    return true;
  }

  bool start_array(std::size_t) override {
    if (next_ == Next::kShape) {
      next_ = Next::kDim;
    } else if (next_ == Next::kOffsets) {
      next_ = Next::kOffset;
    } else {
      return Unexpected("a list");
    }
    return true;
  }

  bool end_array() override {
    const bool is_shape = next_ == Next::kDim;
    next_ = Next::kField;
    if (is_shape) return true;
    if (offsets_.size() != 2) {
      return Refuse(fmt::format("data_offsets holds {} numbers, wanted 2", offsets_.size()));
    }
    if (offsets_[1] < offsets_[0]) {
      return Refuse(
          fmt::format("data_offsets ends at {}, before its begin at {}", offsets_[1], offsets_[0]));
    }
    tensor_.offset = offsets_[0];
    tensor_.bytes = offsets_[1] - offsets_[0];
    return true;
  }

  bool key(string_t& key) override {
    if (next_ == Next::kMetadataKey) {
      key_ = std::move(key);
      next_ = Next::kMetadataText;
      return true;
    }
    if (next_ == Next::kField) return Field(key);
    if (key != kMetadataKey) {
      tensor_.name = std::move(key);
      next_ = Next::kTensor;
      return true;
    }
    next_ = Next::kMetadata;
    return !std::exchange(has_metadata_, true) || Refuse("__metadata__ stands twice");
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    error_ = fmt::format("not valid JSON at byte {} of the header", position);
    return false;
  }

  Status Error(const std::string& where) const { return {code_, where + ": " + error_}; }

 private:
  // What the next token must be.
  enum class Next {
    kHeader,
    kName,
    kTensor,
    kField,
    kDType,
    kShape,
    kDim,
    kOffsets,
    kOffset,
    kMetadata,
    kMetadataKey,
    kMetadataText
  };

  bool Field(std::string_view name) {
    if (name == "dtype") return Once(&has_dtype_, Next::kDType, name);
    if (name == "shape") return Once(&has_shape_, Next::kShape, name);
    if (name == "data_offsets") return Once(&has_offsets_, Next::kOffsets, name);
    return Refuse(
        fmt::format("unknown field {}, wanted dtype, shape and data_offsets", Quoted(name)));
  }

  bool Once(bool* seen, Next next, std::string_view name) {
    next_ = next;
    return !std::exchange(*seen, true) || Refuse(fmt::format("{} stands twice", name));
  }

  std::string Wanted() const {
    switch (next_) {
      case Next::kDType:
        return "a text for dtype";
      case Next::kShape:
        return "a list for shape";
      case Next::kDim:
        return "whole numbers from 0 to 2^63 - 1 in shape";
      case Next::kOffsets:
        return "a list for data_offsets";
      case Next::kOffset:
        return "whole numbers from 0 to 2^63 - 1 in data_offsets";
      case Next::kMetadata:
        return "an object of texts for __metadata__";
      case Next::kMetadataText:
        return "a text for " + Quoted(key_) + " of __metadata__";
      default:
        return "an object";
    }
  }

  bool Unexpected(const std::string& found) {
    return Refuse("found " + found + ", wanted " + Wanted());
  }

  bool Refuse(const std::string& what) {
    const bool in_metadata = next_ == Next::kMetadata || next_ == Next::kMetadataKey ||
                             next_ == Next::kMetadataText || next_ == Next::kHeader;
    error_ = in_metadata ? what : fmt::format("tensor {}: {}", Quoted(tensor_.name), what);
    return false;
  }

  SafetensorsHeader& header_;
  Next next_ = Next::kHeader;
  TensorInfo tensor_;
  std::vector<int64_t> offsets_;
  std::string key_;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false, has_metadata_ = false;
  Code code_ = Code::kInvalid;
  std::string error_;
};

Status CheckSize(const TensorInfo& t, const std::string& where) {
  const auto bytes = BytesOf(t.shape, t.dtype);
  if (!bytes) {
    return Status::Invalid(fmt::format("{}: tensor {}: the size of shape {} overflows", where,
                                       Quoted(t.name), ToString(t.shape)));
  }
  if (*bytes == t.bytes) return Status::Ok();
  return Status::Invalid(
      fmt::format("{}: tensor {}: data_offsets hold {} bytes, shape {} of {} wants {}", where,
                  Quoted(t.name), t.bytes, ToString(t.shape), NameOf(t.dtype), *bytes));
}

// Sorts the tensors by offset and holds them to covering exactly `data_bytes`.
Status CheckCover(std::vector<TensorInfo>* tensors, int64_t data_bytes, const std::string& where) {
  std::sort(tensors->begin(), tensors->end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  int64_t covered = 0;
  for (const TensorInfo& t : *tensors) {
    if (t.offset != covered) {
      return Status::Invalid(
          fmt::format("{}: tensor {} begins at byte {} of the data, wanted {}: {}", where,
                      Quoted(t.name), t.offset, covered,
                      t.offset < covered ? "it overlaps another tensor" : "it leaves a hole"));
    }
    MM01_RETURN_IF_ERROR(CheckSize(t, where));
    covered += t.bytes;
  }
  if (covered == data_bytes) return Status::Ok();
  return Status::Invalid(
      fmt::format("{}: the tensors take {} bytes of data, the file holds {}: {}", where, covered,
                  data_bytes, covered > data_bytes ? "it is truncated" : "the rest is no tensor"));
}

std::vector<uint32_t> OrderByName(const std::vector<TensorInfo>& tensors) {
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return tensors[a].name < tensors[b].name; });
  return order;
}

Status CheckNamesDiffer(const std::vector<TensorInfo>& tensors, const std::string& where) {
  const std::vector<uint32_t> order = OrderByName(tensors);
  for (size_t i = 1; i < order.size(); ++i) {
    const std::string& name = tensors[order[i]].name;
    if (name == tensors[order[i - 1]].name) {
      return Status::Invalid(fmt::format("{}: tensor {} stands twice", where, Quoted(name)));
    }
  }
  return Status::Ok();
}

std::string FormatHeader(const std::vector<TensorInfo>& tensors,
                         const std::map<std::string, std::string>& metadata) {
  std::string header = "{";
  if (!metadata.empty()) {
    header += JsonText(kMetadataKey) + ":{";
    for (const auto& [key, text] : metadata) header += JsonText(key) + ":" + JsonText(text) + ",";
    header.back() = '}';
    header += ',';
  }
  for (const TensorInfo& t : tensors) {
    header +=
        fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}},)", JsonText(t.name),
                    NameOf(t.dtype), fmt::join(t.shape, ","), t.offset, t.offset + t.bytes);
  }
  if (header.size() > 1) header.pop_back();
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');  // the data begin at a multiple of 8
  return header;
}

}  // namespace

Result<int64_t> ParseSafetensorsLength(std::string_view first_bytes, int64_t file_size,
                                       const std::string& where) {
  if (file_size < kLengthBytes) {
    return Status::Invalid(
        fmt::format("{}: {} bytes, a safetensors file has at least 8 for the length "
                    "of its header",
                    where, file_size));
  }
  Check(first_bytes.size() >= kLengthBytes, "the length of the header takes 8 bytes");
  uint64_t length = 0;
  std::memcpy(&length, first_bytes.data(), kLengthBytes);
  const bool begins_well = first_bytes.size() == kLengthBytes || first_bytes[kLengthBytes] == '{';
  const bool fits = length <= static_cast<uint64_t>(file_size - kLengthBytes);
  if (begins_well && fits && length <= kMaxSafetensorsHeaderBytes)
    return static_cast<int64_t>(length);

  if (const std::string_view other = OtherFormat(first_bytes); !other.empty()) {
    return Status::Invalid(fmt::format(
        "{}: is {}, wanted safetensors: models are read as data, never as code", where, other));
  }
  if (length > kMaxSafetensorsHeaderBytes) {
    return Status::Invalid(
        fmt::format("{}: the header's length word says {} bytes, at most {} are "
                    "allowed",
                    where, length, kMaxSafetensorsHeaderBytes));
  }
  if (!fits) {
    return Status::Invalid(
        fmt::format("{}: the header's length word says {} bytes, only {} follow it", where, length,
                    file_size - kLengthBytes));
  }
  return Status::Invalid(fmt::format("{}: the header begins with {}, wanted \"{{\"", where,
                                     Quoted(first_bytes.substr(kLengthBytes, 1))));
}

Result<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, int64_t file_size,
                                                 const std::string& where) {
  if (!json.starts_with('{')) {
    return Status::Invalid(fmt::format("{}: the header begins with {}, wanted \"{{\"", where,
                                       Quoted(json.substr(0, 1))));
  }
  // The parser takes a NUL for the end of the text and would not see what follows.
  if (const size_t nul = json.find('\0'); nul != std::string_view::npos) {
    return Status::Invalid(
        fmt::format("{}: not valid JSON at byte {} of the header", where, nul + 1));
  }
  SafetensorsHeader header;
  HeaderReader reader(&header);
  if (!ReadJsonEvents(json, &reader)) return reader.Error(where);

  const int64_t data_begin = kLengthBytes + static_cast<int64_t>(json.size());
  MM01_RETURN_IF_ERROR(CheckNamesDiffer(header.tensors, where));
  MM01_RETURN_IF_ERROR(CheckCover(&header.tensors, file_size - data_begin, where));
  for (TensorInfo& t : header.tensors) t.offset += data_begin;
  return header;
}

SafetensorsFile::SafetensorsFile(File file, SafetensorsHeader header)
    : file_(std::move(file)), header_(std::move(header)), by_name_(OrderByName(header_.tensors)) {}

Result<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  MM01_ASSIGN_OR_RETURN(File file, File::Open(path));
  std::string first(static_cast<size_t>(std::min<int64_t>(file.size(), kLengthBytes + 1)), '\0');
  MM01_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(first))));
  MM01_ASSIGN_OR_RETURN(const int64_t length, ParseSafetensorsLength(first, file.size(), path));
  std::string json(static_cast<size_t>(length), '\0');
  MM01_RETURN_IF_ERROR(file.Read(kLengthBytes, std::as_writable_bytes(std::span(json))));
  MM01_RETURN_IF_ERROR(file.CheckUnchanged());
  MM01_ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensorsHeader(json, file.size(), path));
  return SafetensorsFile(std::move(file), std::move(header));
}

const TensorInfo* SafetensorsFile::Find(std::string_view name) const {
  const auto& tensors = header_.tensors;
  const auto it = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [&](uint32_t i, std::string_view wanted) { return tensors[i].name < wanted; });
  return it == by_name_.end() || tensors[*it].name != name ? nullptr : &tensors[*it];
}

Status SafetensorsFile::Read(const TensorInfo& tensor, int64_t offset_in_tensor,
                             std::span<std::byte> out) const {
  const auto bytes = static_cast<int64_t>(out.size());
  Check(0 <= offset_in_tensor && offset_in_tensor <= tensor.bytes &&
            bytes <= tensor.bytes - offset_in_tensor,
        "a read leaves its tensor");
  MM01_RETURN_IF_ERROR(file_.Read(tensor.offset + offset_in_tensor, out));
  return file_.CheckUnchanged();
}

Status SafetensorsFile::WrongType(const TensorInfo& tensor, DType wanted) const {
  return Status::Invalid(fmt::format("{}: tensor {} holds {}, wanted {}", path(),
                                     Quoted(tensor.name), mm01::ToString(tensor.dtype),
                                     mm01::ToString(wanted)));
}

Result<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, std::vector<TensorInfo> tensors,
    const std::map<std::string, std::string>& metadata) {
  int64_t data_bytes = 0;
  for (TensorInfo& t : tensors) {
    const auto bytes = BytesOf(t.shape, t.dtype);
    const auto end = bytes ? CheckedAdd(data_bytes, *bytes) : std::nullopt;
    Check(end.has_value() && *bytes >= 0, "tensor sizes must not overflow");
    t.offset = data_bytes;
    t.bytes = *bytes;
    data_bytes = *end;
  }
  const std::string header = FormatHeader(tensors, metadata);
  // What our own reader would refuse must not be written.
  const int64_t data_begin = kLengthBytes + static_cast<int64_t>(header.size());
  Check(static_cast<int64_t>(header.size()) <= kMaxSafetensorsHeaderBytes,
        "the header is too long");
  const auto parsed = ParseSafetensorsHeader(header, data_begin + data_bytes, path);
  Check(parsed.ok(), parsed.status().message());
  for (TensorInfo& t : tensors) t.offset += data_begin;

  MM01_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  const uint64_t length = header.size();
  MM01_RETURN_IF_ERROR(file.Write(std::as_bytes(std::span(&length, 1))));
  MM01_RETURN_IF_ERROR(file.Write(header));
  return SafetensorsWriter(std::move(file), std::move(tensors), data_bytes);
}

Status SafetensorsWriter::Append(std::span<const std::byte> data) {
  const auto bytes = static_cast<int64_t>(data.size());
  Check(bytes <= missing_bytes_, "more data than the header declares");
  missing_bytes_ -= bytes;
  return file_.Write(data);
}

Status SafetensorsWriter::Finish() {
  Check(missing_bytes_ == 0, "less data than the header declares");
  return file_.Commit();
}

}  // namespace mm01
