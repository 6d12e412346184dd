// Files by pread and atomic replacement, so that the disk can surprise nobody.
//
// Nothing is mapped: a file that shrinks while it is read gives an error where a mapping gives
// SIGBUS. A file that is written appears whole under its name or not at all.
//
// Errors    NotFound where the path does not exist, Invalid where it is no regular file, TooLarge
//           over a stated limit, Io where the system refuses or the file is not what it was when
//           it was opened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"

namespace mm01 {

// Owns an open file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { Close(); }
  Descriptor(Descriptor&& other) noexcept : fd_(other.Release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;

  int get() const { return fd_; }
  void Close();

 private:
  int Release();

  int fd_ = -1;
};

// A regular file, open for reading. All const members may be called from several threads at once.
class File {
 public:
  static Result<File> Open(const std::string& path);

  const std::string& path() const { return path_; }
  int64_t size() const { return stamp_.size; }  // in bytes, when it was opened

  // Fills `out` from `offset` >= 0. A read that ends early is an error: out is then part old, part
  // new.
  Status Read(int64_t offset, std::span<std::byte> out) const;

  // An error if size or time of last change differ from when the file was opened. Writes that fall
  // into one tick of the file system's clock (4 ms or less) with the opening go unseen.
  Status CheckUnchanged() const;

 private:
  struct Stamp {
    int64_t size = 0;
    int64_t seconds = 0;
    int64_t nanoseconds = 0;
    friend bool operator==(const Stamp&, const Stamp&) = default;
  };

  File(std::string path, Descriptor fd, Stamp stamp)
      : path_(std::move(path)), fd_(std::move(fd)), stamp_(stamp) {}

  std::string path_;
  Descriptor fd_;
  Stamp stamp_;
};

// All of a file, which may hold at most `max_bytes`.
Result<std::string> ReadFile(const std::string& path, int64_t max_bytes);

// A file in the making: it gathers bytes under a temporary name in the folder of `path`, and takes
// the name `path` when it is committed. Without Commit it leaves nothing behind.
class AtomicFile {
 public:
  // Symbolic links are followed; what is there and is no regular file is refused.
  static Result<AtomicFile> Create(const std::string& path);
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;

  const std::string& path() const { return path_; }
  Status Write(std::span<const std::byte> bytes);
  Status Write(std::string_view text) { return Write(std::as_bytes(std::span(text))); }

  // Bytes to the disk, rename, folder to the disk. Nothing may be written after it.
  Status Commit();

 private:
  AtomicFile(std::string path, std::string temp, Descriptor fd)
      : path_(std::move(path)), temp_(std::move(temp)), fd_(std::move(fd)) {}

  std::string path_;
  std::string temp_;  // empty once there is nothing to remove
  Descriptor fd_;
};

// `path` holds `contents`, or what it held before and an error.
Status WriteFileAtomically(const std::string& path, std::string_view contents);

// The same for contents that come in pieces: `write` hands them to the file and must not commit it.
Status WriteFileAtomically(const std::string& path,
                           const std::function<Status(AtomicFile&)>& write);

}  // namespace mm01
