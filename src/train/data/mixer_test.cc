#include "train/data/mixer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "testing/tiny_training.h"

namespace mm01::train {
namespace {

// What every row promises.
void ExpectPacked(const Row& row, int64_t length) {
  ASSERT_EQ(row.length(), length);
  ASSERT_EQ(row.targets.size(), row.ids.size());
  ASSERT_EQ(row.cu_seqlens.front(), 0);
  ASSERT_EQ(row.cu_seqlens.back(), length);
  ASSERT_EQ(row.documents.size() + 1, row.cu_seqlens.size());
  for (size_t d = 0; d + 1 < row.cu_seqlens.size(); ++d) {
    ASSERT_LT(row.cu_seqlens[d], row.cu_seqlens[d + 1]);
    for (int64_t t = row.cu_seqlens[d]; t + 1 < row.cu_seqlens[d + 1]; ++t) {
      const auto i = static_cast<size_t>(t);
      if (row.targets[i] >= 0) {
        ASSERT_EQ(row.targets[i], row.ids[i + 1]);
      }
    }
  }
}

TEST(Mixing, AnEpochHasEveryTokenOnce) {
  const TinyTraining tiny;
  const DataSet set = DataSet::Open(tiny / "text").value();
  for (const int64_t length : {17, 256, 1000}) {
    TextStream stream = TextStream::Create(set, {}, length, 1).value();
    EXPECT_EQ(stream.epoch_tokens(), set.info().num_tokens);
    std::multiset<int32_t> got, want;
    Row row;
    ASSERT_TRUE(stream.Read(0, stream.epoch_tokens(), &row).ok());
    got.insert(row.ids.begin(), row.ids.end());
    int64_t counted = 0, firsts = 0;
    for (const int32_t t : row.targets) counted += t >= 0;
    for (int64_t d = 0; d < set.num_documents(); ++d) {
      TokenSpan span;
      ASSERT_TRUE(set.Read(d, 0, set.Length(d), &span).ok());
      want.insert(span.ids.begin(), span.ids.end());
      ++firsts;
    }
    EXPECT_EQ(got, want);
    EXPECT_EQ(counted, set.info().num_tokens - firsts);  // all but the first of each document
  }
}

TEST(Mixing, AStreamIsTheSameWhereverItIsReadFrom) {
  const TinyTraining tiny;
  const DataSet set = DataSet::Open(tiny / "text").value();
  TextStream whole = TextStream::Create(set, {}, 100, 1).value();
  Row all;
  const int64_t total = 3 * whole.epoch_tokens() + 50;
  ASSERT_TRUE(whole.Read(0, total, &all).ok());
  TextStream parts = TextStream::Create(set, {}, 100, 1).value();
  for (const int64_t begin : {total - 70, int64_t{0}, whole.epoch_tokens() - 30}) {
    Row part;
    ASSERT_TRUE(parts.Read(begin, 70, &part).ok());
    ExpectPacked(part, 70);
    EXPECT_TRUE(std::equal(part.ids.begin(), part.ids.end(), all.ids.begin() + begin));
    EXPECT_TRUE(std::equal(part.targets.begin(), part.targets.end(), all.targets.begin() + begin));
  }
  Row epoch0, epoch1;
  ASSERT_TRUE(whole.Read(0, 200, &epoch0).ok());
  ASSERT_TRUE(whole.Read(whole.epoch_tokens(), 200, &epoch1).ok());
  EXPECT_NE(epoch0.ids, epoch1.ids);  // every epoch is shuffled anew
}

TEST(Mixing, LimitsLeaveDocumentsOut) {
  const TinyTraining tiny;
  const DataSet set = DataSet::Open(tiny / "text").value();
  const SourceSpec spec{.name = "s", .path = "p", .min_tokens = 100, .max_tokens = 200};
  TextStream stream = TextStream::Create(set, spec, 1000, 1).value();
  Row row;
  ASSERT_TRUE(stream.Read(0, stream.epoch_tokens(), &row).ok());
  for (const int64_t d : row.documents) {
    EXPECT_GE(set.Length(d), 100);
    EXPECT_LE(set.Length(d), 200);
  }
  EXPECT_FALSE(TextStream::Create(set, {.min_tokens = 5000}, 1000, 1).ok());
}

TEST(Mixing, WithoutResetsARowIsAWindowOfOneText) {
  const TinyTraining tiny;
  Recipe recipe = tiny.Recipe();
  recipe.sources[0].resets = false;
  const auto data = TrainData::Load(recipe).value();
  const DataSet& set = data->sets.at("text");
  TokenSpan all;
  ASSERT_TRUE(set.ReadOn(0, 2 * set.info().num_tokens, &all).ok());
  Mixer mixer(recipe, *data);
  for (const RowPlan& plan : mixer.Next(0)) {
    if (plan.name != "text") continue;
    const Row row = mixer.Make(plan).value();
    const int64_t n = row.length();
    EXPECT_EQ(row.cu_seqlens, (std::vector<int64_t>{0, n}));
    EXPECT_TRUE(std::equal(row.ids.begin() + 1, row.ids.end(), row.targets.begin()));
    EXPECT_NE(std::search(all.ids.begin(), all.ids.end(), row.ids.begin(), row.ids.end()),
              all.ids.end());
    EXPECT_GE(row.targets.back(), 0);
  }
  recipe.validation = {.source = "text", .tokens = 600};
  const std::vector<Row> windows = ValidationRows(recipe, *data, 200).value();
  ASSERT_EQ(windows.size(), 3u);
  EXPECT_TRUE(std::equal(windows[1].ids.begin(), windows[1].ids.end(), all.ids.begin() + 200));
  EXPECT_EQ(windows[1].targets.back(), all.ids[400]);
}

TEST(Mixing, PartsOfADocumentDoNotMeet) {
  const TinyTraining tiny;
  const DataSet set = DataSet::Open(tiny / "text").value();
  int64_t tokens = 0, counted = 0;
  for (const auto& [begin, end] : {std::pair(0.0, 0.75), {0.75, 1.0}}) {
    TextStream stream =
        TextStream::Create(set, {.part_begin = begin, .part_end = end}, 50, 1).value();
    Row row;
    ASSERT_TRUE(stream.Read(0, stream.epoch_tokens(), &row).ok());
    tokens += row.length();
    for (const int32_t t : row.targets) counted += t >= 0;
  }
  EXPECT_EQ(tokens, set.info().num_tokens);
  EXPECT_EQ(counted, tokens - 2 * set.num_documents());
}

TEST(Mixing, ATextFileIsASourceToo) {
  const TinyTraining tiny;
  std::string text = TinyTraining::Text(3) + std::string(1, '\0') + TinyTraining::Text(4);
  ASSERT_TRUE(WriteFileAtomically(tiny / "book.txt", text).ok());
  Recipe recipe = tiny.Recipe();
  recipe.sources[0].path = tiny / "book.txt";
  const auto data = TrainData::Load(recipe).value();
  const DataSet& set = data->sets.at("text");
  ASSERT_EQ(set.num_documents(), 2);
  TokenSpan span;
  ASSERT_TRUE(set.Read(1, 0, set.Length(1), &span).ok());
  EXPECT_EQ(data->tokenizer->Decode(span.ids), TinyTraining::Text(4));
}

TEST(Mixing, AResumedMixerGoesOnWithTheSameRows) {
  const TinyTraining tiny;
  const Recipe recipe = tiny.Recipe();
  const auto data = TrainData::Load(recipe).value();
  Mixer straight(recipe, *data), resumed(recipe, *data);
  for (int64_t step = 0; step < 5; ++step) straight.Next(step);
  resumed.Seek(straight.position());
  for (int64_t step = 5; step < 8; ++step) {
    const auto a = straight.Next(step), b = resumed.Next(step);
    ASSERT_EQ(a.size(), 4u);
    for (size_t i = 0; i < a.size(); ++i) {
      const Row x = straight.Make(a[i]).value(), y = resumed.Make(b[i]).value();
      ExpectPacked(x, 256);
      EXPECT_EQ(x.ids, y.ids);
      EXPECT_EQ(x.targets, y.targets);
      EXPECT_EQ(x.cu_seqlens, y.cu_seqlens);
    }
  }
  EXPECT_EQ(straight.position(), resumed.position());
}

TEST(Mixing, SharesAreKept) {
  const TinyTraining tiny;
  const Recipe recipe = tiny.Recipe();
  const auto data = TrainData::Load(recipe).value();
  Mixer mixer(recipe, *data);
  std::map<std::string, int> count;
  for (int64_t step = 0; step < 200; ++step) {
    for (const RowPlan& plan : mixer.Next(step)) ++count[plan.name];
  }
  EXPECT_NEAR(count["needles"], 200, 50);  // a quarter of 800
  EXPECT_EQ(count["needles"] + count["text"], 800);
}

TEST(Mixing, AnotherTokenizersDataIsRefused) {
  const TinyTraining tiny;
  const Recipe recipe = tiny.Recipe();
  const std::string path = tiny / "tokenizer.json";
  const std::string text = ReadFile(path, 1 << 20).value();
  ASSERT_TRUE(WriteFileAtomically(path, text + "\n").ok());
  const auto data = TrainData::Load(recipe);
  ASSERT_FALSE(data.ok());
  EXPECT_NE(data.status().message().find("another tokenizer"), std::string::npos);
}

TEST(Mixing, ValidationRowsAreTheSameEveryTime) {
  const TinyTraining tiny;
  const Recipe recipe = tiny.Recipe();
  const auto data = TrainData::Load(recipe).value();
  const auto a = ValidationRows(recipe, *data, 128).value();
  const auto b = ValidationRows(recipe, *data, 128).value();
  ASSERT_EQ(a.size(), 16u);
  for (size_t i = 0; i < a.size(); ++i) {
    ExpectPacked(a[i], 128);
    EXPECT_EQ(a[i].ids, b[i].ids);
  }
}

}  // namespace
}  // namespace mm01::train
