#include "io/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <thread>

namespace mm01 {
namespace {

namespace fs = std::filesystem;

class FileTest : public testing::Test {
 protected:
  FileTest() {
    std::string name = testing::TempDir() + "mm01_file_XXXXXX";
    folder_ = ::mkdtemp(name.data());
  }
  ~FileTest() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name), std::ios::binary) << text;
    return Path(name);
  }
  size_t NumFiles() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {}));
  }

  fs::path folder_;
};

void ExpectError(const Status& status, Code code, const std::string& part) {
  EXPECT_EQ(status.code(), code) << status.message();
  EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
}

std::span<std::byte> Bytes(std::string& s) {
  return std::as_writable_bytes(std::span(s));
}

TEST_F(FileTest, ReadsFromAnOffset) {
  const auto file = File::Open(Write("a", "0123456789"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->size(), 10);
  std::string out(4, '?');
  ASSERT_TRUE(file->Read(3, Bytes(out)).ok());
  EXPECT_EQ(out, "3456");
  EXPECT_TRUE(file->Read(10, {}).ok()) << "nothing can be read at the end";
}

TEST_F(FileTest, AShortReadNamesPathOffsetWantedAndFound) {
  const auto file = File::Open(Write("a", "0123456789"));
  ASSERT_TRUE(file.ok());
  std::string out(4, '?');
  const Status status = file->Read(8, Bytes(out));
  ExpectError(status, Code::kIo, Path("a"));
  ExpectError(status, Code::kIo, "at offset 8 wanted 4 bytes, found 2");
}

TEST_F(FileTest, RefusesWhatIsNoRegularFile) {
  ASSERT_EQ(::mkfifo(Path("pipe").c_str(), 0600), 0);
  ExpectError(File::Open(folder_.string()).status(), Code::kInvalid, "is a folder");
  ExpectError(File::Open(Path("pipe")).status(), Code::kInvalid, "is a pipe");
  ExpectError(File::Open("/dev/null").status(), Code::kInvalid, "is a device");
  ExpectError(File::Open(Path("none")).status(), Code::kNotFound, Path("none"));
}

TEST_F(FileTest, NoticesAFileThatChangesInUse) {
  const auto file = File::Open(Write("a", "0123456789"));
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(file->CheckUnchanged().ok());

  struct timespec times[2] = {{1, 0}, {1, 5}};
  ASSERT_EQ(::utimensat(AT_FDCWD, Path("a").c_str(), times, 0), 0);
  ExpectError(file->CheckUnchanged(), Code::kIo, "changed while in use");

  ASSERT_EQ(::truncate(Path("a").c_str(), 3), 0);
  ExpectError(file->CheckUnchanged(), Code::kIo, "10 bytes when opened, now 3");
}

TEST_F(FileTest, AFileTruncatedByAnotherThreadGivesAnErrorAndNoCrash) {
  constexpr size_t kSize = 1 << 20;
  const std::string path = Write("a", std::string(kSize, 'x'));
  const auto file = File::Open(path);
  ASSERT_TRUE(file.ok());
  std::atomic<bool> reading{false};
  std::thread truncator([&] {
    while (!reading) std::this_thread::yield();
    EXPECT_EQ(::truncate(path.c_str(), 100), 0);
  });
  std::string out(kSize, '?');
  Status status;
  while (status.ok()) {
    status = file->Read(0, Bytes(out));
    reading = true;
  }
  truncator.join();
  ExpectError(status, Code::kIo, "truncated");
}

TEST_F(FileTest, ReadsAWholeFileUpToALimit) {
  const std::string path = Write("a", "0123456789");
  EXPECT_EQ(ReadFile(path, 10).value(), "0123456789");
  ExpectError(ReadFile(path, 9).status(), Code::kTooLarge, "10 bytes, at most 9");
  EXPECT_EQ(ReadFile(Write("empty", ""), 0).value(), "");
}

TEST_F(FileTest, WritesAFileWholeOrNotAtAll) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "old").ok());
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "new").ok());
  EXPECT_EQ(ReadFile(Path("a"), 100).value(), "new");

  const Status status = WriteFileAtomically(Path("a"), [](AtomicFile& file) {
    MM01_RETURN_IF_ERROR(file.Write("half"));
    return Status::Invalid("no more");
  });
  ExpectError(status, Code::kInvalid, "no more");
  EXPECT_EQ(ReadFile(Path("a"), 100).value(), "new");
  EXPECT_EQ(NumFiles(), 1u) << "the temporary file must be gone";
}

TEST_F(FileTest, AnAtomicFileCanBeMoved) {
  auto created = AtomicFile::Create(Path("a"));
  ASSERT_TRUE(created.ok());
  ASSERT_TRUE(created->Write("one ").ok());
  AtomicFile file = std::move(created).value();
  ASSERT_TRUE(file.Write("two").ok());
  EXPECT_FALSE(fs::exists(Path("a"))) << "not before Commit";
  ASSERT_TRUE(file.Commit().ok());
  EXPECT_EQ(ReadFile(Path("a"), 100).value(), "one two");
  EXPECT_THROW((void)file.Write("three"), Bug);
  EXPECT_EQ(NumFiles(), 1u);
}

TEST_F(FileTest, WritesThroughLinksAndNeverOverDevicesOrFolders) {
  Write("real", "old");
  fs::create_symlink("real", Path("link"));
  ASSERT_TRUE(WriteFileAtomically(Path("link"), "new").ok());
  EXPECT_TRUE(fs::is_symlink(Path("link")));
  EXPECT_EQ(ReadFile(Path("real"), 100).value(), "new");

  fs::create_symlink("/dev/null", Path("null"));
  fs::create_symlink("nowhere", Path("dangling"));
  ExpectError(WriteFileAtomically(Path("null"), "x"), Code::kInvalid, "is a device");
  ExpectError(WriteFileAtomically(Path("dangling"), "x"), Code::kIo, "a symbolic link to nothing");
  ExpectError(WriteFileAtomically(folder_.string(), "x"), Code::kInvalid, "is a folder");
  ExpectError(WriteFileAtomically(Path("no/such/file"), "x"), Code::kNotFound, "no/such/file");
}

TEST_F(FileTest, AWriteThatTheSystemRefusesLeavesNothing) {
  // A limit on the size of files stands in for a full disk.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{4096, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const Status status = WriteFileAtomically(Path("big"), std::string(1 << 16, 'x'));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ExpectError(status, Code::kIo, "cannot write: File too large");
  EXPECT_EQ(NumFiles(), 0u);
}

}  // namespace
}  // namespace mm01
