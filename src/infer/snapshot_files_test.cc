#include "infer/snapshot_files.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "testing/tiny_model.h"

namespace mm01::infer {
namespace {

namespace fs = std::filesystem;

// Snapshots of made-up bytes: files do not look inside.
class SnapshotFilesTest : public testing::Test {
 protected:
  static constexpr int64_t kBorder = 1000, kPage = 300;

  SnapshotFilesOptions Options(int64_t budget = 1 << 30, const char* model = "model") {
    return {.folder = folder_ / "snapshots",
            .budget_bytes = budget,
            .most_pending_bytes = 1 << 30,
            .model = model,
            .border_bytes = kBorder,
            .page_bytes = kPage,
            .on_read = [] {}};
  }
  void Open(SnapshotFilesOptions options) {
    files_.reset();
    files_ = SnapshotFiles::Open(std::move(options)).value();
  }
  void Open() { Open(Options()); }

  static std::vector<PrefixKey> KeysOf(uint64_t text, int64_t blocks) {
    std::vector<PrefixKey> keys;
    ExtendPrefixKeys(PrefixRoot("model", ""), TinyTokens(blocks * 64, 96, text), &keys);
    return keys;
  }
  static void Fill(std::byte* out, int64_t size, uint64_t what) {
    for (int64_t i = 0; i < size; ++i) {
      out[i] = static_cast<std::byte>(RandomBits(3, what, static_cast<uint64_t>(i)));
    }
  }
  std::shared_ptr<Snapshot> Empty(uint64_t text, int64_t blocks, int64_t from_block = 0) {
    std::shared_ptr<Snapshot> s(new Snapshot{.key = KeysOf(text, blocks).back(),
                                             .position = blocks * 64,
                                             .border = CountedBuffer(kBorder, total_),
                                             .segments = {}});
    const auto add = [&](int64_t begin, int64_t end) {
      s->segments.emplace_back(new Segment{.begin = begin * 64,
                                           .end = end * 64,
                                           .pages = CountedBuffer((end - begin) * kPage, total_)});
    };
    if (from_block > 0) add(0, from_block);
    add(from_block, blocks);
    return s;
  }
  // Of the text's first blocks, as the state would have them.
  std::shared_ptr<Snapshot> Make(uint64_t text, int64_t blocks) {
    auto s = Empty(text, blocks);
    Fill(s->border.data(), kBorder, text * 1000 + static_cast<uint64_t>(blocks));
    for (int64_t i = 0; i < blocks; ++i) {
      Fill(s->segments[0]->pages.data() + i * kPage, kPage, text * 1000 + static_cast<uint64_t>(i));
    }
    return s;
  }
  void Write(uint64_t text, int64_t blocks) {
    files_->Write(Make(text, blocks), KeysOf(text, blocks));
    files_->Flush();
  }
  // Reads pages from `from_block` on, and compares.
  bool ReadsBack(uint64_t text, int64_t blocks, int64_t from_block = 0) {
    const auto read = Empty(text, blocks, from_block), wanted = Make(text, blocks);
    files_->Read(read);
    files_->Flush();
    const std::vector<SnapshotFiles::ReadEnd> ends = files_->TakeReadEnds();
    EXPECT_EQ(ends.size(), 1u);
    if (!ends.at(0).ok) return false;
    EXPECT_EQ(std::memcmp(read->border.data(), wanted->border.data(), kBorder), 0);
    EXPECT_EQ(std::memcmp(read->Page(from_block, kPage), wanted->Page(from_block, kPage),
                          static_cast<size_t>((blocks - from_block) * kPage)),
              0);
    return true;
  }
  int64_t Find(uint64_t text, int64_t blocks) {
    return files_->Find(KeysOf(text, blocks), blocks * 64) / 64;
  }
  std::string PathOf(uint64_t text, int64_t blocks) {
    return Options().folder + "/" + KeysOf(text, blocks).back().ToHex() + ".snapshot";
  }

  TempFolder folder_;
  std::shared_ptr<std::atomic<int64_t>> total_ = std::make_shared<std::atomic<int64_t>>(0);
  std::unique_ptr<SnapshotFiles> files_;
};

TEST_F(SnapshotFilesTest, WhatIsWrittenIsThereForTheNextProcess) {
  Open();
  Write(1, 3);
  Write(1, 7);
  Write(2, 2);
  const int64_t bytes = files_->bytes();
  EXPECT_LT(bytes, 3 * kBorder + 9 * kPage + 3 * 2048) << "pages of a parent are not repeated";
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(files_->size(), 3);
    EXPECT_EQ(Find(1, 10), 7);
    EXPECT_EQ(Find(1, 6), 3);
    EXPECT_EQ(Find(3, 5), 0);
    EXPECT_TRUE(ReadsBack(1, 7));
    EXPECT_TRUE(ReadsBack(1, 7, 2)) << "from within the parent";
    EXPECT_TRUE(ReadsBack(1, 7, 5));
    EXPECT_TRUE(ReadsBack(2, 2));
    EXPECT_EQ(files_->bytes(), bytes);
    EXPECT_EQ(files_->deleted(), 0);
    Open();
  }
}

TEST_F(SnapshotFilesTest, AnyDamagedByteIsFoundAndTheFileDeletedWithThoseThatNeedIt) {
  Open();
  Write(1, 3);
  files_.reset();
  const auto size = static_cast<int64_t>(fs::file_size(PathOf(1, 3)));
  std::string good(static_cast<size_t>(size), '\0');
  std::ifstream(PathOf(1, 3), std::ios::binary).read(good.data(), size);
  for (int64_t at = 0; at < size; at += 1 + at / 40) {
    std::string bad = good;
    bad[static_cast<size_t>(at)] ^= 0x10;
    std::ofstream(PathOf(1, 3), std::ios::binary) << bad;
    Open();
    if (Find(1, 3) == 3) {
      EXPECT_FALSE(ReadsBack(1, 3)) << "byte " << at;
    }
    EXPECT_EQ(Find(1, 3), 0) << "byte " << at;
    EXPECT_EQ(files_->deleted(), 1) << "byte " << at;
    EXPECT_EQ(files_->bytes(), 0);
    EXPECT_FALSE(fs::exists(PathOf(1, 3)));
  }
}

TEST_F(SnapshotFilesTest, ADamagedParentTakesItsChildrenAlong) {
  Open();
  Write(1, 3);
  Write(1, 5);
  Write(1, 7);
  Write(2, 2);
  files_.reset();
  std::fstream file(PathOf(1, 5), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-100, std::ios::end);
  file.put('x').put('y');
  file.close();
  Open();
  EXPECT_FALSE(ReadsBack(1, 7));
  EXPECT_EQ(Find(1, 7), 3);
  EXPECT_TRUE(ReadsBack(1, 3));
  EXPECT_EQ(files_->deleted(), 2);
  EXPECT_EQ(files_->size(), 2);
}

TEST_F(SnapshotFilesTest, OfManyFilesTheDamagedGoWithThoseAfterThem) {
  Open();
  for (int64_t blocks = 2; blocks <= 80; blocks += 2) Write(1, blocks);
  EXPECT_TRUE(ReadsBack(1, 80));
  EXPECT_TRUE(ReadsBack(1, 80, 37)) << "from within a file";
  files_.reset();
  for (const int64_t blocks : {24, 50, 66}) {
    std::fstream file(PathOf(1, blocks), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-100, std::ios::end);  // pages
    file.put('x').put('y');
  }
  Open();
  EXPECT_TRUE(ReadsBack(1, 22));
  EXPECT_TRUE(ReadsBack(1, 80, 66)) << "those before are not looked at";
  EXPECT_FALSE(ReadsBack(1, 80, 40));
  EXPECT_EQ(Find(1, 80), 48) << "50 and 66 are found at once";
  EXPECT_EQ(files_->deleted(), 16);
  EXPECT_FALSE(ReadsBack(1, 48));
  EXPECT_EQ(Find(1, 80), 22);
  EXPECT_EQ(files_->size(), 11);
  EXPECT_TRUE(ReadsBack(1, 22));
}

TEST_F(SnapshotFilesTest, PagesOfMoreThanOneReadAreWhole) {
  SnapshotFilesOptions options = Options();
  options.border_bytes = (1 << 20) + 16;
  options.page_bytes = 700'000;
  Open(options);
  const auto make = [&](int64_t begin, uint64_t what) {
    const int64_t bytes = (5 - begin) * options.page_bytes;
    std::shared_ptr<Snapshot> s(new Snapshot{.key = KeysOf(1, 5).back(),
                                             .position = 5 * 64,
                                             .border = CountedBuffer(options.border_bytes, total_),
                                             .segments = {}});
    s->segments.emplace_back(
        new Segment{.begin = begin * 64, .end = 5 * 64, .pages = CountedBuffer(bytes, total_)});
    Fill(s->border.data(), what > 0 ? options.border_bytes : 0, what);
    Fill(s->segments[0]->pages.data(), what > 0 ? bytes : 0, what + 1);
    return s;
  };
  const auto written = make(0, 1);
  files_->Write(written, KeysOf(1, 5));
  files_->Flush();  // a read would go first
  for (const int64_t begin : {0, 2, 3}) {
    const auto read = make(begin, 0);
    files_->Read(read);
    files_->Flush();
    ASSERT_TRUE(files_->TakeReadEnds().at(0).ok) << begin;
    EXPECT_EQ(std::memcmp(read->border.data(), written->border.data(),
                          static_cast<size_t>(options.border_bytes)),
              0);
    EXPECT_EQ(std::memcmp(read->segments[0]->pages.data(),
                          written->segments[0]->pages.data() + begin * options.page_bytes,
                          static_cast<size_t>((5 - begin) * options.page_bytes)),
              0)
        << begin;
  }
}

TEST_F(SnapshotFilesTest, ForeignCutRenamedAndUnfinishedFilesAreDeleted) {
  Open();
  for (const uint64_t text : {1, 2, 3, 4}) Write(text, 2);
  Write(5, 2);
  Write(5, 4);
  files_.reset();
  fs::resize_file(PathOf(1, 2), fs::file_size(PathOf(1, 2)) - 1);
  fs::rename(PathOf(2, 2), PathOf(9, 2));
  fs::rename(PathOf(3, 2), Options().folder + "/abc.snapshot");
  fs::remove(PathOf(5, 2));
  std::ofstream(PathOf(6, 2) + ".tmp-1-1") << "half";
  std::ofstream(Options().folder + "/notes.txt") << "not ours";
  Open();
  EXPECT_EQ(files_->size(), 2) << "4, and 2 under a wrong name";
  EXPECT_EQ(files_->deleted(), 3);
  EXPECT_FALSE(ReadsBack(9, 2)) << "the key is in the checksum";
  EXPECT_TRUE(ReadsBack(4, 2));
  EXPECT_TRUE(fs::exists(Options().folder + "/notes.txt"));
  EXPECT_FALSE(fs::exists(PathOf(6, 2) + ".tmp-1-1"));

  Open(Options(1 << 30, "another model"));
  EXPECT_EQ(files_->size(), 0);
  EXPECT_EQ(files_->deleted(), 1);
}

TEST_F(SnapshotFilesTest, TheBudgetHoldsAndChildrenGoBeforeTheirParents) {
  const int64_t budget = 14'000;
  Open(Options(budget));
  for (uint64_t text = 1; text <= 10; ++text) {
    Write(text, 2);
    Write(text, 4);
    EXPECT_LE(files_->bytes(), budget);
    EXPECT_EQ(Find(text, 4), 4);
    EXPECT_TRUE(ReadsBack(text, 4));
    Find(1, 2);
  }
  EXPECT_GE(files_->size(), 4);
  EXPECT_EQ(files_->deleted(), 0);
  int64_t on_disk = 0;
  for (const auto& file : fs::directory_iterator(Options().folder)) {
    on_disk += static_cast<int64_t>(file.file_size());
  }
  EXPECT_EQ(on_disk, files_->bytes());
  Write(20, 100);  // more than there is
  EXPECT_EQ(Find(20, 100), 0);
  EXPECT_EQ(Find(10, 4), 4) << "for that nobody has to go";

  Open(Options(5'000));
  EXPECT_LE(files_->bytes(), 5'000) << "a smaller budget after a restart";
}

TEST_F(SnapshotFilesTest, AFolderIsForOneProcess) {
  Open();
  const auto second = SnapshotFiles::Open(Options());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().message(), Options().folder +
                                           " is in use by another process, wanted a folder of our "
                                           "own");
  const auto nowhere = SnapshotFiles::Open({.folder = "/proc/nowhere", .on_read = [] {}});
  EXPECT_FALSE(nowhere.ok());
}

}  // namespace
}  // namespace mm01::infer
