#include "model/text01/quantize.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "base/format.h"
#include "base/json.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "model/text01/config.h"
#include "model/text01/tensor_names.h"

namespace mm01 {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBlockBytes = 4 << 20;  // of one block of rows as float32, rounded up to a row
constexpr int64_t kMaxCopiedBytes = 256 << 20;
constexpr const char* kCopied[] = {"config.json",
                                   "generation_config.json",
                                   "tokenizer.json",
                                   "tokenizer_config.json",
                                   "special_tokens_map.json",
                                   "added_tokens.json",
                                   "vocab.json",
                                   "merges.txt",
                                   "chat_template.jinja"};

// One tensor to write, with its scales behind it where it has some.
struct Output {
  std::string name;
  TensorLocation from;
  std::vector<int64_t> shape;
  WeightType type;  // float16 is possible here for what stays as it is

  int64_t groups() const { return type.group ? (from.columns + type.group - 1) / type.group : 0; }
  int64_t bytes() const {
    return from.rows * (from.columns * SizeOf(type.dtype) + groups() * SizeOf(DType::kBF16));
  }
};

// What was written, to be taken away again unless Keep is called.
class NewFolder {
 public:
  static Result<NewFolder> Create(const std::string& path) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (fs::exists(status) && !fs::is_directory(status)) {
      return Status::Invalid(fmt::format("{}: a file, wanted a new or empty folder", path));
    }
    if (fs::is_directory(status)) {
      const auto entries = std::distance(fs::directory_iterator(path, error), {});
      if (error) return Status::Io(fmt::format("{}: {}", path, error.message()));
      if (entries == 0) return NewFolder(path, false);
      return Status::Invalid(fmt::format("{}: has {} {}, wanted a new or empty folder", path,
                                         entries, entries == 1 ? "entry" : "entries"));
    }
    if (!fs::create_directory(path, error)) {
      return Status::Io(fmt::format("{}: cannot create the folder: {}", path, error.message()));
    }
    return NewFolder(path, true);
  }

  NewFolder(NewFolder&& other) noexcept
      : path_(std::exchange(other.path_, {})),
        is_new_(other.is_new_),
        files_(std::move(other.files_)) {}
  NewFolder& operator=(NewFolder&&) = delete;
  ~NewFolder() {
    if (path_.empty()) return;
    std::error_code ignored;
    for (const std::string& file : files_) fs::remove(file, ignored);
    if (is_new_) fs::remove(path_, ignored);
  }

  // The path of a file that is about to be written.
  const std::string& Add(const std::string& name) {
    return files_.emplace_back((fs::path(path_) / name).string());
  }
  void Keep() { path_.clear(); }

 private:
  NewFolder(std::string path, bool is_new) : path_(std::move(path)), is_new_(is_new) {}

  std::string path_;  // empty once there is nothing to take away
  bool is_new_;
  std::vector<std::string> files_;
};

template <typename T>
T Load(const std::byte* p, int64_t i) {
  T x;
  std::memcpy(&x, p + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return x;
}

// One row as float32. `scales` are those of the row where it is int8.
void ReadRow(const TensorLocation& from, const std::byte* raw, const bf16* scales,
             std::span<float> row) {
  for (int64_t k = 0; k < from.columns; ++k) {
    float& x = row[static_cast<size_t>(k)];
    switch (from.dtype) {
      case DType::kF32:
        x = Load<float>(raw, k);
        break;
      case DType::kBF16:
        x = ToFloat(Load<bf16>(raw, k));
        break;
      case DType::kF16:
        x = HalfToFloat(Load<uint16_t>(raw, k));
        break;
      case DType::kI8:
        x = static_cast<float>(Load<int8_t>(raw, k)) * ToFloat(scales[k / from.group]);
        break;
      default:
        Fail("LocateTensors let a type through that cannot be read");
    }
  }
}

// One row in the type that is written; `scales` gets the row's where that is int8.
void WriteRow(const WeightType& type, std::span<const float> row, std::byte* out, bf16* scales) {
  if (type.dtype == DType::kF32) {
    std::memcpy(out, row.data(), row.size_bytes());
  } else if (type.dtype == DType::kBF16) {
    for (size_t k = 0; k < row.size(); ++k) {
      const bf16 x = ToBF16(row[k]);
      std::memcpy(out + k * sizeof(x), &x, sizeof(x));
    }
  } else {
    const auto group = static_cast<size_t>(type.group);
    for (size_t begin = 0; begin < row.size(); begin += group) {
      const size_t n = std::min(group, row.size() - begin);
      QuantizeGroup(row.subspan(begin, n), {reinterpret_cast<int8_t*>(out) + begin, n},
                    scales[begin / group]);
    }
  }
}

class Converter {
 public:
  Converter(Queue& queue, const Checkpoint& checkpoint, const ConvertOptions& options,
            int64_t total_bytes)
      : queue_(queue), checkpoint_(checkpoint), options_(options), total_bytes_(total_bytes) {}

  Status Write(const Output& output, SafetensorsWriter& writer) {
    std::vector<bf16> scales(static_cast<size_t>(output.from.rows * output.groups()));
    const int64_t block =
        std::max<int64_t>(1, kBlockBytes / (output.from.columns * SizeOf(DType::kF32)));
    for (int64_t row = 0; row < output.from.rows; row += block) {
      const int64_t end = std::min(output.from.rows, row + block);
      MM01_RETURN_IF_ERROR(WriteBlock(output, row, end, scales.data(), writer));
    }
    return writer.Append(std::as_bytes(std::span(scales)));
  }

 private:
  bool IsCopy(const Output& o) const {
    return o.type.dtype == o.from.dtype && o.type.group == o.from.group;
  }

  // `scales` are those of all of the output.
  Status WriteBlock(const Output& o, int64_t begin, int64_t end, bf16* scales,
                    SafetensorsWriter& writer) {
    const TensorLocation& from = o.from;
    const int64_t rows = end - begin, groups = o.groups();
    const int64_t in_row = from.columns * SizeOf(from.dtype);
    raw_.resize(static_cast<size_t>(rows * in_row));
    MM01_RETURN_IF_ERROR(
        checkpoint_.Read(checkpoint_.Find(from.source), (from.first_row + begin) * in_row, raw_));
    MM01_RETURN_IF_ERROR(ReadScales(from, begin, rows));
    const int64_t out_row = from.columns * SizeOf(o.type.dtype);
    out_.resize(static_cast<size_t>(rows * out_row));
    if (IsCopy(o)) {
      std::ranges::copy(raw_, out_.begin());
      std::ranges::copy(from_scales_, scales + begin * groups);
    } else {
      const int64_t from_groups = static_cast<int64_t>(from_scales_.size()) / rows;
      std::atomic<bool> finite = true;
      queue_.pool().ParallelFor(rows, [&](int64_t i, int) {
        std::vector<float> row(static_cast<size_t>(from.columns));
        ReadRow(from, raw_.data() + i * in_row, from_scales_.data() + i * from_groups, row);
        if (!std::ranges::all_of(row, [](float x) { return std::isfinite(x); })) finite = false;
        WriteRow(o.type, row, out_.data() + i * out_row, scales + (begin + i) * groups);
      });
      if (!finite) {
        return Status::Invalid(fmt::format("{}: {} holds an infinity or a NaN, wanted numbers",
                                           checkpoint_.path(), from.source));
      }
    }
    MM01_RETURN_IF_ERROR(writer.Append(out_));
    done_ += rows * (out_row + groups * SizeOf(DType::kBF16));
    if (!options_.progress || options_.progress(done_, total_bytes_)) return Status::Ok();
    return Status::Cancelled(fmt::format("stopped after {} of {} bytes", done_, total_bytes_));
  }

  Status ReadScales(const TensorLocation& from, int64_t begin, int64_t rows) {
    const int64_t groups = from.group ? (from.columns + from.group - 1) / from.group : 0;
    from_scales_.resize(static_cast<size_t>(rows * groups));
    if (groups == 0) return Status::Ok();
    return checkpoint_.Read(checkpoint_.Find(from.scale),
                            (from.first_row + begin) * groups * SizeOf(DType::kBF16),
                            std::as_writable_bytes(std::span(from_scales_)));
  }

  Queue& queue_;
  const Checkpoint& checkpoint_;
  const ConvertOptions& options_;
  int64_t total_bytes_;
  int64_t done_ = 0;
  std::vector<std::byte> raw_, out_;
  std::vector<bf16> from_scales_;
};

Result<std::vector<Output>> PlanOutputs(const Checkpoint& checkpoint, const TextConfig& config,
                                        const WeightType& type) {
  std::vector<StoredTensor> stored;
  for (const CheckpointTensor& t : checkpoint.tensors()) {
    stored.push_back({t.info->name, t.info->dtype, t.info->shape});
  }
  MM01_ASSIGN_OR_RETURN(const TensorMap map, LocateTensors(config, stored, checkpoint.path()));
  std::vector<Output> outputs;
  for (WantedTensor& wanted : WantedTensors(config)) {
    const TensorLocation& from = map.at(wanted.name);
    outputs.push_back({.name = std::move(wanted.name),
                       .from = from,
                       .shape = std::move(wanted.shape),
                       .type = wanted.is_weight ? type : WeightType{from.dtype, 0}});
  }
  return outputs;
}

// Neighbours together, up to `shard_bytes`.
std::vector<std::span<const Output>> Shards(std::span<const Output> outputs, int64_t shard_bytes) {
  std::vector<std::span<const Output>> shards;
  size_t begin = 0;
  int64_t bytes = 0;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (i > begin && bytes + outputs[i].bytes() > shard_bytes) {
      shards.push_back(outputs.subspan(begin, i - begin));
      begin = i;
      bytes = 0;
    }
    bytes += outputs[i].bytes();
  }
  shards.push_back(outputs.subspan(begin));
  return shards;
}

std::vector<TensorInfo> Declare(std::span<const Output> shard) {
  std::vector<TensorInfo> tensors;
  for (const Output& o : shard) {
    tensors.push_back({.name = o.name, .dtype = o.type.dtype, .shape = o.shape});
    if (o.groups() == 0) continue;
    tensors.push_back(
        {.name = o.name + "_scale", .dtype = DType::kBF16, .shape = {o.from.rows, o.groups()}});
  }
  return tensors;
}

Status CopyFiles(const fs::path& from, NewFolder& folder) {
  for (const char* name : kCopied) {
    std::error_code error;
    if (!fs::exists(from / name, error)) continue;
    MM01_ASSIGN_OR_RETURN(const std::string contents,
                          ReadFile((from / name).string(), kMaxCopiedBytes));
    MM01_RETURN_IF_ERROR(WriteFileAtomically(folder.Add(name), contents));
  }
  return Status::Ok();
}

Status CheckDisk(const std::string& folder, int64_t bytes) {
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error || space.available >= static_cast<uintmax_t>(bytes)) return Status::Ok();
  return Status::TooLarge(fmt::format("{}: the disk has {} left, wanted {}", folder,
                                      FormatBytes(static_cast<double>(space.available)),
                                      FormatBytes(static_cast<double>(bytes))));
}

Status CheckOptions(const ConvertOptions& options) {
  const WeightType& t = options.type;
  const bool is_int8 = t.dtype == DType::kI8 && (t.group == 32 || t.group == 64 || t.group == 128);
  const bool is_float = (t.dtype == DType::kF32 || t.dtype == DType::kBF16) && t.group == 0;
  if (!is_int8 && !is_float) {
    return Status::Invalid(fmt::format(
        "weights of {} in groups of {}, wanted float32, bf16, or int8 in groups of 32, 64 or 128",
        ToString(t.dtype), t.group));
  }
  if (options.shard_bytes >= 1) return Status::Ok();
  return Status::Invalid(fmt::format("files of {} bytes, wanted 1 or more", options.shard_bytes));
}

}  // namespace

Result<ConvertReport> ConvertCheckpoint(Queue& queue, const std::string& model_dir,
                                        const std::string& out_dir, const ConvertOptions& options) {
  MM01_RETURN_IF_ERROR(CheckOptions(options));
  MM01_ASSIGN_OR_RETURN(const TextConfig config, LoadTextConfig(model_dir));
  MM01_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(model_dir));
  MM01_ASSIGN_OR_RETURN(const auto outputs, PlanOutputs(checkpoint, config, options.type));
  ConvertReport report;
  for (const Output& o : outputs) report.bytes += o.bytes();

  MM01_ASSIGN_OR_RETURN(NewFolder folder, NewFolder::Create(out_dir));
  MM01_RETURN_IF_ERROR(CheckDisk(out_dir, report.bytes));
  MM01_RETURN_IF_ERROR(CopyFiles(model_dir, folder));
  const auto shards = Shards(outputs, options.shard_bytes);
  Converter converter(queue, checkpoint, options, report.bytes);
  std::map<std::string, std::string> places;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        shards.size() == 1 ? "model.safetensors"
                           : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    MM01_ASSIGN_OR_RETURN(
        SafetensorsWriter writer,
        SafetensorsWriter::Create(folder.Add(name), Declare(shards[i]), {{"format", "pt"}}));
    for (const TensorInfo& t : writer.tensors()) places[t.name] = name;
    for (const Output& o : shards[i]) MM01_RETURN_IF_ERROR(converter.Write(o, writer));
    MM01_RETURN_IF_ERROR(checkpoint.CheckUnchanged());
    MM01_RETURN_IF_ERROR(writer.Finish());
  }
  report.num_files = static_cast<int64_t>(shards.size());
  report.num_tensors = static_cast<int64_t>(places.size());
  if (shards.size() > 1) {
    const Json index = {{"metadata", {{"total_size", report.bytes}}}, {"weight_map", Json(places)}};
    MM01_RETURN_IF_ERROR(
        WriteFileAtomically(folder.Add("model.safetensors.index.json"), JsonText(index, 1) + "\n"));
  }
  folder.Keep();
  return report;
}

}  // namespace mm01
