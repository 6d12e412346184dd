// Safetensors: named arrays in one file, as data and nothing else.
//
//   | 8 bytes: length N, little-endian | N bytes: JSON header | data to the end of the file |
//
//   {"__metadata__": {"key": "text", ...},
//    "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
//
// The reader is as strict as the reference library or stricter: N <= 100,000,000, the header begins
// with '{' and is JSON whose keys stand once, the tensors cover the data from its first byte to its
// last without a hole or an overlap, and every size fits its shape. Beyond the reference it refuses
// unknown or repeated fields, a __metadata__ of null, more than 32 dims, and empty tensors whose
// other dims overflow.
//
// Errors    Invalid, with file, tensor, the value found and the value wanted. Unsupported for a
//           dtype or a number of dims that is not built. Io if the file cannot be read or changes
//           while in use.
// Cost      Opening reads the header alone and takes time and memory linear in it.
// Sources   github.com/huggingface/safetensors, "Format" and safetensors/src/tensor.rs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "io/file.h"
#include "tensor/dtype.h"

namespace mm01 {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // of the first byte, from the begin of the file
  int64_t bytes = 0;

  int64_t num_elements() const { return bytes / SizeOf(dtype); }
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // by offset, empty ones first
  std::map<std::string, std::string> metadata;
};

inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// The length of the JSON header, from the first bytes of a file of `file_size` bytes: all of them,
// or 8 at least. More let an error say what the file is instead. `where` names the file in errors.
Result<int64_t> ParseSafetensorsLength(std::string_view first_bytes, int64_t file_size,
                                       const std::string& where);

// The JSON header of such a file, checked against `file_size`.
Result<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, int64_t file_size,
                                                 const std::string& where);

// A safetensors file open for reading. Const members may be called from several threads at once.
class SafetensorsFile {
 public:
  static Result<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  // Null if there is no such tensor. The pointer lives as long as this object, moves included.
  const TensorInfo* Find(std::string_view name) const;

  // Bytes offset_in_tensor .. of a tensor of this file; a range that leaves the tensor is our own
  // bug. Fails if the file was written to since it was opened.
  Status Read(const TensorInfo& tensor, int64_t offset_in_tensor, std::span<std::byte> out) const;

  // All of a small tensor, which must hold elements of type T.
  template <typename T>
  Result<std::vector<T>> ReadAll(const TensorInfo& tensor) const {
    if (tensor.dtype != kDTypeOf<T>) return WrongType(tensor, kDTypeOf<T>);
    std::vector<T> values(static_cast<size_t>(tensor.num_elements()));
    MM01_RETURN_IF_ERROR(Read(tensor, 0, std::as_writable_bytes(std::span(values))));
    return values;
  }

  Status CheckUnchanged() const { return file_.CheckUnchanged(); }

 private:
  SafetensorsFile(File file, SafetensorsHeader header);
  Status WrongType(const TensorInfo& tensor, DType wanted) const;

  File file_;
  SafetensorsHeader header_;
  std::vector<uint32_t> by_name_;  // tensors in the order of their names
};

// Writes a safetensors file whose tensors are known before their data. The file takes its name when
// it is finished; without Finish nothing is left behind.
class SafetensorsWriter {
 public:
  // Tensors lie in the order given; their offset and bytes are worked out here. Names that repeat
  // or are no UTF-8, and shapes that overflow, are our own bugs.
  static Result<SafetensorsWriter> Create(const std::string& path, std::vector<TensorInfo> tensors,
                                          const std::map<std::string, std::string>& metadata = {});

  const std::vector<TensorInfo>& tensors() const { return tensors_; }

  // The next bytes of the data, in pieces of any size. More than was declared is our own bug.
  Status Append(std::span<const std::byte> data);

  // Less data than was declared is our own bug.
  Status Finish();

 private:
  SafetensorsWriter(AtomicFile file, std::vector<TensorInfo> tensors, int64_t missing)
      : file_(std::move(file)), tensors_(std::move(tensors)), missing_bytes_(missing) {}

  AtomicFile file_;
  std::vector<TensorInfo> tensors_;
  int64_t missing_bytes_;
};

}  // namespace mm01
