#include "io/file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

namespace mm01 {
namespace {

std::string Reason(int error) {
  return std::generic_category().message(error);
}

Status SystemError(const std::string& path, std::string_view what, int error) {
  const Code code = error == ENOENT || error == ENOTDIR ? Code::kNotFound : Code::kIo;
  return {code, fmt::format("{}: {}: {}", path, what, Reason(error))};
}

std::string_view KindOf(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

Status NotRegular(const std::string& path, mode_t mode) {
  return Status::Invalid(fmt::format("{}: is {}, wanted a regular file", path, KindOf(mode)));
}

// A name beside `path` that no other file of this or another process is writing to.
Result<Descriptor> OpenTemporary(const std::string& path, std::string* temp) {
  static std::atomic<uint64_t> counter{0};
  while (true) {
    *temp = fmt::format("{}.tmp-{}-{}", path, ::getpid(), counter.fetch_add(1));
    const int fd = ::open(temp->c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) return Descriptor(fd);
    if (errno != EEXIST && errno != EINTR) return SystemError(*temp, "cannot create", errno);
  }
}

Status SyncFolderOf(const std::string& path) {
  std::string folder = std::filesystem::path(path).parent_path().string();
  if (folder.empty()) folder = ".";
  const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return SystemError(folder, "cannot open the folder", errno);
  // EINVAL: a file system whose folders need no sync.
  if (::fsync(fd.get()) != 0 && errno != EINVAL) {
    return SystemError(folder, "cannot write the folder to disk", errno);
  }
  return Status::Ok();
}

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    Close();
    fd_ = other.Release();
  }
  return *this;
}

void Descriptor::Close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

int Descriptor::Release() {
  return std::exchange(fd_, -1);
}

Result<File> File::Open(const std::string& path) {
  // Without O_NONBLOCK a pipe would hold us here until somebody writes to it.
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return SystemError(path, "cannot open", errno);
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return SystemError(path, "cannot stat", errno);
  if (!S_ISREG(st.st_mode)) return NotRegular(path, st.st_mode);
  return File(path, std::move(fd), {st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec});
}

Status File::Read(int64_t offset, std::span<std::byte> out) const {
  Check(offset >= 0, "a read begins inside the file");
  size_t done = 0;
  while (done < out.size()) {
    const int64_t at = offset + static_cast<int64_t>(done);
    const ssize_t n = ::pread(fd_.get(), out.data() + done, out.size() - done, at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return SystemError(path_, fmt::format("cannot read at offset {}", at), errno);
    }
    if (n == 0) {
      return Status::Io(
          fmt::format("{}: at offset {} wanted {} bytes, found {}: the file is truncated", path_,
                      offset, out.size(), done));
    }
    done += static_cast<size_t>(n);
  }
  return Status::Ok();
}

Status File::CheckUnchanged() const {
  struct stat st {};
  if (::fstat(fd_.get(), &st) != 0) return SystemError(path_, "cannot stat", errno);
  const Stamp now{st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec};
  if (now == stamp_) return Status::Ok();
  if (now.size != stamp_.size) {
    return Status::Io(fmt::format("{}: changed while in use: {} bytes when opened, now {}", path_,
                                  stamp_.size, now.size));
  }
  return Status::Io(
      fmt::format("{}: changed while in use: somebody wrote to it after it was opened", path_));
}

Result<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  MM01_ASSIGN_OR_RETURN(const File file, File::Open(path));
  if (file.size() > max_bytes) {
    return Status::TooLarge(
        fmt::format("{}: {} bytes, at most {} are read", path, file.size(), max_bytes));
  }
  std::string contents(static_cast<size_t>(file.size()), '\0');
  MM01_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(contents))));
  MM01_RETURN_IF_ERROR(file.CheckUnchanged());
  return contents;
}

Result<AtomicFile> AtomicFile::Create(const std::string& path) {
  struct stat st {};
  std::string target = path;
  if (::lstat(path.c_str(), &st) == 0) {
    if (S_ISLNK(st.st_mode)) {
      std::error_code error;
      target = std::filesystem::canonical(path, error).string();
      if (error || ::stat(target.c_str(), &st) != 0) {
        return Status::Io(
            fmt::format("{}: a symbolic link to nothing, wanted a regular file", path));
      }
    }
    if (!S_ISREG(st.st_mode)) return NotRegular(path, st.st_mode);
  }
  std::string temp;
  MM01_ASSIGN_OR_RETURN(Descriptor fd, OpenTemporary(target, &temp));
  return AtomicFile(std::move(target), std::move(temp), std::move(fd));
}

AtomicFile::~AtomicFile() {
  if (!temp_.empty()) ::unlink(temp_.c_str());
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temp_(std::exchange(other.temp_, {})),
      fd_(std::move(other.fd_)) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temp_, other.temp_);
  std::swap(fd_, other.fd_);
  return *this;
}

Status AtomicFile::Write(std::span<const std::byte> bytes) {
  Check(!temp_.empty(), "nothing is written to a committed file");
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SystemError(temp_, "cannot write", errno);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return Status::Ok();
}

Status AtomicFile::Commit() {
  Check(!temp_.empty(), "a file is committed once");
  if (::fsync(fd_.get()) != 0) return SystemError(temp_, "cannot write to disk", errno);
  if (::rename(temp_.c_str(), path_.c_str()) != 0) {
    return SystemError(path_, "cannot rename the finished file to this name", errno);
  }
  temp_.clear();
  fd_.Close();
  return SyncFolderOf(path_);
}

Status WriteFileAtomically(const std::string& path, std::string_view contents) {
  return WriteFileAtomically(path, [&](AtomicFile& file) { return file.Write(contents); });
}

Status WriteFileAtomically(const std::string& path,
                           const std::function<Status(AtomicFile&)>& write) {
  MM01_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  MM01_RETURN_IF_ERROR(write(file));
  return file.Commit();
}

}  // namespace mm01
