#include "train/data/shard.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/rng.h"
#include "testing/temp_folder.h"

namespace mm01::train {
namespace {

// Documents 0, 1, ... of 1 + 7 d % 40 tokens.
TokenSpan MakeDocument(int64_t d, int64_t vocab_size, bool masked) {
  TokenSpan span;
  for (int64_t i = 0; i < 1 + 7 * d % 40; ++i) {
    span.ids.push_back(static_cast<int32_t>((d * 1000 + i * 37) % vocab_size));
    span.counted.push_back(!masked || (d + i) % 3 != 0);
  }
  return span;
}

class Shards : public testing::Test {
 protected:
  std::string Write(int64_t vocab_size, bool masked, int64_t num_documents = 50) {
    const std::string folder = folder_ / ("data" + std::to_string(next_++));
    DataSetInfo info{.source = "a test", .tokenizer_digest = "t", .vocab_size = vocab_size};
    DataSetWriter writer = DataSetWriter::Create(folder, info, 200).value();
    for (int64_t d = 0; d < num_documents; ++d) {
      EXPECT_TRUE(writer.Add(MakeDocument(d, vocab_size, masked)).ok());
    }
    EXPECT_TRUE(writer.Finish().ok());
    return folder;
  }

  TempFolder folder_;
  int next_ = 0;
};

TEST_F(Shards, WhatIsWrittenIsRead) {
  for (const int64_t vocab_size : {300, 65536, 70000}) {
    for (const bool masked : {false, true}) {
      const std::string folder = Write(vocab_size, masked);
      EXPECT_TRUE(std::filesystem::exists(folder + "/shard-00003.tok"));
      const DataSet set = DataSet::Open(folder).value();
      ASSERT_EQ(set.num_documents(), 50);
      for (int64_t d = 0; d < 50; ++d) {
        const TokenSpan want = MakeDocument(d, vocab_size, masked);
        ASSERT_EQ(set.Length(d), std::ssize(want.ids));
        TokenSpan got;
        const int64_t half = set.Length(d) / 2;
        ASSERT_TRUE(set.Read(d, 0, half, &got).ok());
        ASSERT_TRUE(set.Read(d, half, set.Length(d) - half, &got).ok());
        EXPECT_EQ(got.ids, want.ids);
        EXPECT_EQ(got.counted, want.counted);
      }
    }
  }
}

TEST_F(Shards, EveryFlippedBitIsFound) {
  const std::string path = Write(300, true, 6) + "/shard-00000.tok";
  std::ifstream in(path, std::ios::binary);
  const std::string good{std::istreambuf_iterator<char>(in), {}};
  ASSERT_TRUE(TokenShard::Open(path).ok());
  // All of the header, and a prime's multiples behind it.
  for (size_t bit = 0; bit < 8 * good.size(); bit += bit < 8 * 72 ? 1 : 11) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ 1 << bit % 8);
    std::ofstream(path, std::ios::binary) << bad;
    EXPECT_FALSE(TokenShard::Open(path).ok()) << "bit " << bit;
  }
  for (size_t size = 0; size < good.size(); size += 13) {
    std::ofstream(path, std::ios::binary) << good.substr(0, size);
    EXPECT_FALSE(TokenShard::Open(path).ok()) << size << " bytes";
  }
}

TEST_F(Shards, AFolderThatIsNoDataSetIsRefused) {
  EXPECT_EQ(DataSet::Open(folder_ / "nowhere").status().code(), Code::kNotFound);
  const std::string folder = Write(300, false);
  const auto again = DataSetWriter::Create(folder, {.vocab_size = 300}, 100);
  ASSERT_FALSE(again.ok());
  EXPECT_NE(again.status().message().find("not empty"), std::string::npos);
  std::ofstream(folder + "/data.json") << R"({"format": "mm01-data", "source": "x",
      "tokenizer": "t", "vocab_size": 300, "shards": ["../shard-00000.tok"]})";
  EXPECT_FALSE(DataSet::Open(folder).ok());
}

}  // namespace
}  // namespace mm01::train
