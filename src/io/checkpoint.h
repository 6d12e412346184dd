// A model's tensors, wherever its checkpoint keeps them: in shards under one index, or in one file.
//
// Opening reads the index and the header of every shard, so all that could be wrong with names,
// sizes and places is an error before the first weight is read. No weights are read: 413 shards
// cost 413 headers, and one file descriptor each for as long as the checkpoint is open.
//
// Refused   An index entry that is not the plain name of a .safetensors file in the folder
//           (letters, digits, '.', '_', '-', '+'; no folder, no "..", no leading '.'), a symbolic
//           link that leaves the folder, a tensor that index and shards place differently, and
//           formats that can hold code (.pt, .bin, .pkl, ...), by name and by their first bytes.
// Errors    NotFound, Invalid, Unsupported or Io, with the file, the tensor and what was wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "io/safetensors.h"

namespace mm01 {

// A tensor and the file that holds it. Borrowed: valid as long as the checkpoint, moves included.
struct CheckpointTensor {
  const TensorInfo* info = nullptr;
  const SafetensorsFile* file = nullptr;

  explicit operator bool() const { return info != nullptr; }
};

// Where an index places its tensors: the shard of each name. `where` names the file in errors; only
// "weight_map" is looked at. Time n log n in the length of `json`.
Result<std::map<std::string, std::string>> ParseCheckpointIndex(std::string_view json,
                                                                const std::string& where);

// Const members may be called from several threads at once.
class Checkpoint {
 public:
  // `path` is a folder with model.safetensors.index.json or model.safetensors, or a .safetensors
  // file.
  static Result<Checkpoint> Open(const std::string& path);

  Checkpoint(Checkpoint&&) = default;
  Checkpoint& operator=(Checkpoint&&) = default;

  const std::string& path() const { return path_; }
  const std::vector<CheckpointTensor>& tensors() const { return tensors_; }  // by name
  const std::vector<SafetensorsFile>& files() const { return files_; }
  std::vector<std::string> Names() const;               // sorted
  int64_t total_bytes() const { return total_bytes_; }  // of all tensors, headers not counted

  // A false handle if there is no such tensor.
  CheckpointTensor Find(std::string_view name) const;

  // See SafetensorsFile::Read.
  Status Read(const CheckpointTensor& tensor, int64_t offset_in_tensor,
              std::span<std::byte> out) const {
    return tensor.file->Read(*tensor.info, offset_in_tensor, out);
  }
  template <typename T>
  Result<std::vector<T>> ReadAll(const CheckpointTensor& tensor) const {
    return tensor.file->ReadAll<T>(*tensor.info);
  }

  // An error if a file was written to since the checkpoint was opened.
  Status CheckUnchanged() const;

 private:
  Checkpoint(std::string path, std::vector<SafetensorsFile> files, int64_t total_bytes);

  std::string path_;
  std::vector<SafetensorsFile> files_;
  std::vector<CheckpointTensor> tensors_;
  int64_t total_bytes_ = 0;
};

}  // namespace mm01
