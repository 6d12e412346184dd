// The bytes of a file, unpacked on the way where it is compressed by xz, gzip, zstd or bzip2.
//
// How a file is packed follows from its first bytes, not from its name; anything else is plain.
// Several packed streams end to end are read as one.
// Errors    those of io/file.h; Invalid where the packed data is damaged or ends early, with the
//           offset in the file.
// Cost      one pass, 1 MiB of the file in memory and what the library keeps (xz: up to 256 MiB).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "io/file.h"

namespace mm01 {

class UnpackedFile {
 public:
  static Result<UnpackedFile> Open(const std::string& path);
  ~UnpackedFile();
  UnpackedFile(UnpackedFile&&) noexcept;
  UnpackedFile& operator=(UnpackedFile&&) noexcept;

  const std::string& path() const { return file_.path(); }
  // The next bytes into the front of `out`, which is not empty; how many. 0: the end.
  Result<size_t> Read(std::span<char> out);

  int64_t packed_bytes() const { return file_.size(); }
  int64_t packed_bytes_read() const { return offset_; }

  class Decoder;

 private:
  UnpackedFile(File file, std::unique_ptr<Decoder> decoder);
  Status Fill();

  File file_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<std::byte[]> buffer_;
  std::span<const std::byte> unread_;  // of the buffer
  int64_t offset_ = 0;                 // in the file, behind the buffer
};

}  // namespace mm01
