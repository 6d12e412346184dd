#include "io/checkpoint.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "base/json.h"
#include "io/checked.h"
#include "io/file.h"

namespace mm01 {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr std::string_view kSingleName = "model.safetensors";
constexpr std::string_view kExtension = ".safetensors";
constexpr std::string_view kDataNeverCode = "models are read as data, never as code";
constexpr int64_t kMaxIndexBytes = 64 << 20;  // Text-01's takes 0.8 MB
constexpr size_t kMaxNameBytes = 255;         // of a file, on every common file system

// The shard of each tensor: name -> file.
using WeightMap = std::map<std::string, std::string>;

bool CanHoldCode(const fs::path& path) {
  static constexpr std::string_view kExtensions[] = {".pt",  ".pth",    ".bin",
                                                     ".pkl", ".pickle", ".ckpt"};
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(), [](char c) {
    return 'A' <= c && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  return std::find(std::begin(kExtensions), std::end(kExtensions), extension) !=
         std::end(kExtensions);
}

// Reads weight_map and nothing else, building no tree of values: neither depth nor the number of
// keys can hurt.
class IndexReader : public JsonEvents {
 public:
  explicit IndexReader(WeightMap* map) : map_(*map) {}

  bool has_weight_map() const { return has_weight_map_; }
  const std::string& error() const { return error_; }

  bool null() override { return Other("null"); }
  bool boolean(bool) override { return Other("a truth value"); }
  bool number_integer(number_integer_t) override { return Other("a number"); }
  bool number_unsigned(number_unsigned_t) override { return Other("a number"); }
  bool number_float(number_float_t, const string_t&) override { return Other("a number"); }
  bool binary(binary_t&) override { return Other("binary data"); }

  bool string(string_t& file) override {
    if (!InWeightMap()) return Other("a text");
    const auto [entry, is_new] = map_.try_emplace(std::move(key_), std::move(file));
    return is_new || Refuse(fmt::format("tensor {} stands twice", Quoted(entry->first)));
  }

  bool start_object(std::size_t) override {
    if (InWeightMap()) return Other("an object");
    if (depth_ == 1 && in_weight_map_) has_weight_map_ = true;
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_ == 0 || in_weight_map_) return Other("a list");
    ++depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }

  bool key(string_t& key) override {
    if (depth_ == 1) {
      in_weight_map_ = key == "weight_map";
      if (in_weight_map_ && has_weight_map_) return Refuse("weight_map stands twice");
    }
    key_ = std::move(key);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Refuse(fmt::format("not valid JSON at byte {}", position));
  }

 private:
  bool InWeightMap() const { return depth_ == 2 && in_weight_map_; }

  bool Other(std::string_view found) {
    if (depth_ == 0) return Refuse(fmt::format("holds {}, wanted an object", found));
    if (!in_weight_map_) return true;
    if (depth_ == 1) return Refuse(fmt::format("weight_map is {}, wanted an object", found));
    return Refuse(
        fmt::format("tensor {} is given {}, wanted the name of a file", Quoted(key_), found));
  }

  bool Refuse(std::string what) {
    error_ = std::move(what);
    return false;
  }

  WeightMap& map_;
  std::string key_;
  std::string error_;
  int64_t depth_ = 0;
  bool in_weight_map_ = false;  // inside the value of the top-level key weight_map
  bool has_weight_map_ = false;
};

Status CheckShardName(std::string_view name, const std::string& where) {
  if (CanHoldCode(name)) {
    return Status::Invalid(
        fmt::format("{}: weight_map names the file {}, wanted .safetensors files: {}", where,
                    Quoted(name), kDataNeverCode));
  }
  const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
    return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') || c == '.' ||
           c == '_' || c == '-' || c == '+';
  });
  if (plain && name.size() > kExtension.size() && name.size() <= kMaxNameBytes &&
      name.ends_with(kExtension) && !name.starts_with('.') &&
      name.find("..") == std::string_view::npos) {
    return Status::Ok();
  }
  return Status::Invalid(fmt::format(
      "{}: weight_map names the file {}, wanted the plain name of a .safetensors file in "
      "the same folder",
      where, Quoted(name)));
}

// The file `name` of `folder`, which must be there and lie in the folder once links are followed.
Result<std::string> FileInFolder(const fs::path& folder, std::string_view name,
                                 const std::string& wanted_by) {
  const fs::path path = folder / name;
  std::error_code error;
  const fs::path real_folder = fs::canonical(folder, error);
  if (error) return Status::Io(fmt::format("{}: {}", folder.string(), error.message()));
  const fs::path real = fs::canonical(path, error);
  if (error) {
    return Status::NotFound(
        fmt::format("{}: {}: wanted by {}", path.string(), error.message(), wanted_by));
  }
  const auto [end, unused] =
      std::mismatch(real_folder.begin(), real_folder.end(), real.begin(), real.end());
  if (end == real_folder.end()) return path.string();
  return Status::Invalid(fmt::format(
      "{}: a symbolic link to {}, outside the folder of the checkpoint; wanted the file "
      "itself, or a link within the folder",
      path.string(), real.string()));
}

// The places that index and shards give every tensor must be the same.
Status CheckPlaces(const WeightMap& map, const std::vector<SafetensorsFile>& files,
                   const std::string& index) {
  std::map<std::string, const SafetensorsFile*> by_shard;
  for (const SafetensorsFile& file : files) {
    by_shard[fs::path(file.path()).filename().string()] = &file;
  }
  size_t found = 0;
  for (const auto& [shard, file_pointer] : by_shard) {
    const SafetensorsFile& file = *file_pointer;
    for (const TensorInfo& t : file.tensors()) {
      const auto entry = map.find(t.name);
      if (entry == map.end()) {
        return Status::Invalid(fmt::format("{}: holds tensor {}, which {} does not list",
                                           file.path(), Quoted(t.name), index));
      }
      if (entry->second != shard) {
        return Status::Invalid(fmt::format("{}: holds tensor {}, which {} places in {}",
                                           file.path(), Quoted(t.name), index,
                                           Quoted(entry->second)));
      }
      ++found;
    }
  }
  if (found == map.size()) return Status::Ok();
  for (const auto& [name, shard] : map) {
    const SafetensorsFile& file = *by_shard.at(shard);
    if (file.Find(name) == nullptr) {
      return Status::Invalid(fmt::format("{}: tensor {} is missing, {} places it here", file.path(),
                                         Quoted(name), index));
    }
  }
  Fail("a tensor is missing in no shard");
}

Result<std::vector<SafetensorsFile>> OpenShards(const fs::path& folder) {
  MM01_ASSIGN_OR_RETURN(const std::string index,
                        FileInFolder(folder, kIndexName, "the checkpoint"));
  MM01_ASSIGN_OR_RETURN(const std::string json, ReadFile(index, kMaxIndexBytes));
  MM01_ASSIGN_OR_RETURN(const WeightMap map, ParseCheckpointIndex(json, index));
  std::set<std::string> shards;
  for (const auto& [name, shard] : map) shards.insert(shard);

  std::vector<SafetensorsFile> files;
  files.reserve(shards.size());
  for (const std::string& shard : shards) {
    MM01_ASSIGN_OR_RETURN(const std::string path, FileInFolder(folder, shard, index));
    MM01_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
    files.push_back(std::move(file));
  }
  MM01_RETURN_IF_ERROR(CheckPlaces(map, files, index));
  return files;
}

// A folder without a safetensors checkpoint: says what it holds instead.
Status NoCheckpoint(const fs::path& folder) {
  std::error_code error;
  std::optional<std::string> code;
  int64_t num_safetensors = 0;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (CanHoldCode(it->path())) code = it->path().filename().string();
    if (it->path().extension() == kExtension) ++num_safetensors;
  }
  if (error) return Status::Io(fmt::format("{}: {}", folder.string(), error.message()));
  const std::string wanted =
      fmt::format("{}: no {} and no {}", folder.string(), kIndexName, kSingleName);
  if (num_safetensors > 0) {
    return Status::NotFound(
        fmt::format("{}, but {} other .safetensors file(s)", wanted, num_safetensors));
  }
  if (code)
    return Status::NotFound(fmt::format("{}, but {}: {}", wanted, Quoted(*code), kDataNeverCode));
  return Status::NotFound(wanted);
}

Result<std::vector<SafetensorsFile>> OpenSingle(const std::string& path) {
  std::vector<SafetensorsFile> files;
  MM01_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
  files.push_back(std::move(file));
  return files;
}

Result<std::vector<SafetensorsFile>> OpenFiles(const std::string& path) {
  std::error_code error;
  const fs::path folder = path;
  const fs::file_status status = fs::status(folder, error);
  if (status.type() == fs::file_type::not_found) {
    return Status::NotFound(fmt::format("{}: no such file or folder", path));
  }
  if (!fs::is_directory(status)) {
    if (folder.extension() == kExtension) return OpenSingle(path);
    return Status::Invalid(fmt::format("{}: wanted a folder or a .safetensors file{}{}", path,
                                       CanHoldCode(folder) ? ": " : "",
                                       CanHoldCode(folder) ? kDataNeverCode : ""));
  }
  // A dangling link counts as there, so that it is named in the error.
  if (fs::exists(fs::symlink_status(folder / kIndexName, error))) return OpenShards(folder);
  if (!fs::exists(fs::symlink_status(folder / kSingleName, error))) return NoCheckpoint(folder);
  MM01_ASSIGN_OR_RETURN(const std::string file,
                        FileInFolder(folder, kSingleName, "the checkpoint"));
  return OpenSingle(file);
}

}  // namespace

Result<std::map<std::string, std::string>> ParseCheckpointIndex(std::string_view json,
                                                                const std::string& where) {
  // The parser takes a NUL for the end of the text and would not see what follows.
  if (const size_t nul = json.find('\0'); nul != std::string_view::npos) {
    return Status::Invalid(fmt::format("{}: not valid JSON at byte {}", where, nul + 1));
  }
  WeightMap map;
  IndexReader reader(&map);
  if (!ReadJsonEvents(json, &reader)) {
    return Status::Invalid(where + ": " + reader.error());
  }
  if (!reader.has_weight_map()) {
    return Status::Invalid(where +
                           ": no weight_map, wanted an object of tensor names and their files");
  }
  if (map.empty())
    return Status::Invalid(where + ": weight_map is empty, wanted at least one tensor");
  for (const auto& [name, shard] : map) MM01_RETURN_IF_ERROR(CheckShardName(shard, where));
  return map;
}

Checkpoint::Checkpoint(std::string path, std::vector<SafetensorsFile> files, int64_t total_bytes)
    : path_(std::move(path)), files_(std::move(files)), total_bytes_(total_bytes) {
  for (const SafetensorsFile& file : files_) {
    for (const TensorInfo& info : file.tensors()) tensors_.push_back({&info, &file});
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const CheckpointTensor& a, const CheckpointTensor& b) {
              return a.info->name < b.info->name;
            });
}

Result<Checkpoint> Checkpoint::Open(const std::string& path) {
  MM01_ASSIGN_OR_RETURN(std::vector<SafetensorsFile> files, OpenFiles(path));
  int64_t total = 0;
  for (const SafetensorsFile& file : files) {
    for (const TensorInfo& info : file.tensors()) {
      const auto sum = CheckedAdd(total, info.bytes);
      if (!sum)
        return Status::TooLarge(path + ": the tensors of all shards take 2^63 bytes or more");
      total = *sum;
    }
  }
  return Checkpoint(path, std::move(files), total);
}

std::vector<std::string> Checkpoint::Names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const CheckpointTensor& t : tensors_) names.push_back(t.info->name);
  return names;
}

CheckpointTensor Checkpoint::Find(std::string_view name) const {
  const auto it = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const CheckpointTensor& t, std::string_view wanted) { return t.info->name < wanted; });
  return it == tensors_.end() || it->info->name != name ? CheckpointTensor{} : *it;
}

Status Checkpoint::CheckUnchanged() const {
  for (const SafetensorsFile& file : files_) MM01_RETURN_IF_ERROR(file.CheckUnchanged());
  return Status::Ok();
}

}  // namespace mm01
