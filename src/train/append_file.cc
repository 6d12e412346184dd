#include "train/append_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace mm01::train {
namespace {

Status SystemError(const std::string& path, const char* what) {
  return Status::Io(
      fmt::format("{}: cannot {}: {}", path, what, std::generic_category().message(errno)));
}

}  // namespace

Result<AppendFile> AppendFile::Open(const std::string& path) {
  Descriptor fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (fd.get() < 0) return SystemError(path, "open");
  return AppendFile(path, std::move(fd));
}

Status AppendFile::Append(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SystemError(path_, "write");
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return Status::Ok();
}

}  // namespace mm01::train
