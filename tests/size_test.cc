// A clone stays small: what is committed is counted, and so is every earlier version of it, as git
// packs and sends it.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>

namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kCloneBytes = 120'000'000;
// text-128 alone has 15 MB of float32 weights that nothing makes smaller: docs/data.md.
constexpr std::uintmax_t kGoldensBytes = 24'000'000;
constexpr std::uintmax_t kModelBytes = 36'000'000;
constexpr std::uintmax_t kLinearModelBytes = 12'000'000;

const fs::path kRoot = MM01_SOURCE_DIR;

// What git prints, or nothing where there is no git or no repository (an unpacked archive).
std::optional<std::string> Git(const std::string& arguments) {
  // The owner of the folder may be another than the user: in containers it often is.
  const std::string command =
      "git -c safe.directory='*' -C '" + kRoot.string() + "' " + arguments + " 2>/dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return std::nullopt;
  std::string output;
  std::array<char, 4096> buffer;
  for (size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    output.append(buffer.data(), n);
  }
  if (pclose(pipe) != 0) return std::nullopt;
  return output;
}

// Bytes of the tracked files under `folder`, which is "" or ends with '/'.
std::uintmax_t TrackedBytes(const std::string& list, const std::string& folder) {
  std::uintmax_t bytes = 0;
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = list.find('\0', begin);
    const std::string path = list.substr(begin, end - begin);
    const fs::path file = kRoot / path;
    if (path.starts_with(folder) && fs::is_regular_file(file)) bytes += fs::file_size(file);
    begin = end + 1;
  }
  return bytes;
}

class RepositorySize : public testing::Test {
 protected:
  void SetUp() override {
    const std::optional<std::string> list = Git("ls-files -z");
    if (!list) GTEST_SKIP() << "no git repository";
    list_ = *list;
  }

  std::string list_;
};

TEST_F(RepositorySize, ACloneTransfersLessThan120MB) {
  const std::optional<std::string> history = Git("rev-list --objects --disk-usage HEAD");
  ASSERT_TRUE(history);
  EXPECT_LT(std::stoull(*history), kCloneBytes);
}

TEST_F(RepositorySize, GoldensStayWithin24MB) {
  EXPECT_LE(TrackedBytes(list_, "tests/goldens/"), kGoldensBytes);
}

TEST_F(RepositorySize, ModelsStayWithin36And12MB) {
  EXPECT_LE(TrackedBytes(list_, "models/nano/"), kModelBytes);
  EXPECT_LE(TrackedBytes(list_, "models/nano-linear/"), kLinearModelBytes);
}

}  // namespace
