// A log that grows line by line, or record by record.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "io/file.h"

namespace mm01::train {

class AppendFile {
 public:
  // Made where it does not exist.
  static Result<AppendFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  // The file holds all of `bytes` when this returns, though the disk may not.
  Status Append(std::string_view bytes);

 private:
  AppendFile(std::string path, Descriptor fd) : path_(std::move(path)), fd_(std::move(fd)) {}

  std::string path_;
  Descriptor fd_;
};

}  // namespace mm01::train
