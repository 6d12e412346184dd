#include "infer/snapshots.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "infer/engine.h"
#include "testing/tiny_model.h"

namespace mm01::infer {
namespace {

std::vector<PrefixKey> KeysOf(std::span<const int32_t> tokens, const char* salt = "") {
  std::vector<PrefixKey> keys;
  ExtendPrefixKeys(PrefixRoot("model", salt), tokens, &keys);
  return keys;
}

TEST(PrefixKeysTest, AreTheChainOfTheHeader) {
  // Worked by another implementation of SHA-256.
  const PrefixKey root = PrefixRoot("m", "s");
  EXPECT_EQ(root.ToHex(), "3cfcc60a737787c3dc40ddfaecd6d3f2f56ef70b5b90fd762184ef5c21c2b2d7");
  std::vector<int32_t> counting(64);
  std::iota(counting.begin(), counting.end(), 0);
  std::vector<PrefixKey> first;
  ExtendPrefixKeys(root, counting, &first);
  EXPECT_EQ(first.at(0).ToHex(),
            "5cc49d3a2d4c9be9f31465e0d8f159c56a1ee46df6ce3cfb95d85442ab23d257");

  const std::vector<int32_t> tokens = TinyTokens(200);
  const std::vector<PrefixKey> keys = KeysOf(tokens);
  ASSERT_EQ(keys.size(), 3u) << "of whole blocks";
  std::vector<PrefixKey> in_pieces;
  for (size_t n = 0; n <= tokens.size(); n += 50) {
    ExtendPrefixKeys(PrefixRoot("model", ""), std::span(tokens).first(n), &in_pieces);
  }
  EXPECT_EQ(in_pieces, keys);
}

TEST(PrefixKeysTest, DifferWithTokenModelAndSaltFromThereOn) {
  std::vector<int32_t> tokens = TinyTokens(192);
  const std::vector<PrefixKey> keys = KeysOf(tokens);
  tokens[64] ^= 1;
  const std::vector<PrefixKey> edited = KeysOf(tokens);
  EXPECT_EQ(edited[0], keys[0]);
  EXPECT_NE(edited[1], keys[1]);
  EXPECT_NE(edited[2], keys[2]);
  EXPECT_EQ(CommonBlocks(edited, keys), 1);
  EXPECT_EQ(CommonBlocks(std::span(keys).first(2), keys), 2);
  EXPECT_EQ(CommonBlocks({}, keys), 0);
  EXPECT_NE(KeysOf(tokens, "a")[0], KeysOf(tokens, "b")[0]);
  EXPECT_NE(PrefixRoot("model", ""), PrefixRoot("mode", "l"));
}

class SnapshotsTest : public testing::Test {
 protected:
  SnapshotsTest() {
    WriteTinyModel(folder_.path(), TinyConfig());
    engine_ = Engine::Load(folder_.path(), {.num_threads = 1,
                                            .context_tokens = 1024,
                                            .num_sequences = 2,
                                            .memory_limit_bytes = 1ll << 30})
                  .value();
    border_ = engine_->state().border_bytes();
    page_ = engine_->state().page_bytes();
  }

  int32_t Open(int64_t room) {
    const int32_t slot = *engine_->state().Open();
    Check(engine_->state().Reserve(slot, room).ok(), "there is room");
    return slot;
  }
  // The logits after them.
  std::vector<float> Read(int32_t slot, std::span<const int32_t> tokens) {
    Scratch scratch(engine_->queue());
    const auto rows = std::ssize(tokens);
    const Tensor hidden = scratch.GetRows(DType::kF32, rows, engine_->config().hidden_size);
    Forward(engine_->model(), {.ids = {tokens.begin(), tokens.end()}, .sequences = {{slot, rows}}},
            hidden);
    std::vector<float> logits(static_cast<size_t>(engine_->config().vocab_size));
    LogitsToHost(engine_->model(), hidden.Rows(rows - 1, rows), logits);
    return logits;
  }
  // Of the first `n` tokens.
  std::shared_ptr<const Snapshot> TakeAt(Snapshots& snapshots, std::span<const int32_t> tokens,
                                         size_t n) {
    const int32_t slot = Open(static_cast<int64_t>(n));
    Read(slot, tokens.first(n));
    auto snapshot = snapshots.Take(engine_->queue(), engine_->state(), slot, KeysOf(tokens));
    engine_->state().Close(slot);
    return snapshot;
  }

  TempFolder folder_;
  std::unique_ptr<Engine> engine_;
  int64_t border_ = 0, page_ = 0;
};

TEST_F(SnapshotsTest, ASequenceGoesOnFromASnapshotToTheBit) {
  Snapshots snapshots(engine_->state(), 1 << 30);
  const std::vector<int32_t> tokens = TinyTokens(300);
  const int32_t slot = Open(300);
  Read(slot, std::span(tokens).first(200));
  ASSERT_TRUE(snapshots.Take(engine_->queue(), engine_->state(), slot, KeysOf(tokens)));
  const std::vector<float> wanted = Read(slot, std::span(tokens).subspan(200));
  engine_->state().Close(slot);

  const auto found = snapshots.Find(KeysOf(tokens), 300);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->position, 192) << "the last border";
  // Slots and pages of others hold other numbers now.
  const int32_t other = Open(300);
  Read(other, TinyTokens(300, 96, 2));
  const int32_t again = Open(300);
  Restoring restoring(found);
  EXPECT_FALSE(restoring.Go(engine_->queue(), engine_->state(), again, 1)) << "a page each";
  EXPECT_FALSE(restoring.Go(engine_->queue(), engine_->state(), again, page_));
  EXPECT_EQ(engine_->state().length(again), 0);
  EXPECT_TRUE(restoring.Go(engine_->queue(), engine_->state(), again, page_));
  EXPECT_EQ(engine_->state().length(again), 192);
  EXPECT_EQ(Read(again, std::span(tokens).subspan(192)), wanted);
}

TEST_F(SnapshotsTest, LaterOnesShareThePagesOfEarlierOnes) {
  Snapshots snapshots(engine_->state(), 1 << 30);
  const std::vector<int32_t> tokens = TinyTokens(640);
  TakeAt(snapshots, tokens, 128);
  EXPECT_EQ(snapshots.bytes(), border_ + 2 * page_);
  TakeAt(snapshots, tokens, 640);
  EXPECT_EQ(snapshots.bytes(), 2 * border_ + 10 * page_);
  TakeAt(snapshots, tokens, 640);
  EXPECT_EQ(snapshots.bytes(), 2 * border_ + 10 * page_) << "the same once more";
  EXPECT_EQ(snapshots.taken(), 2);
  std::vector<int32_t> branch = tokens;
  branch[130] ^= 1;
  TakeAt(snapshots, branch, 192);
  EXPECT_EQ(snapshots.bytes(), 3 * border_ + 11 * page_);
  snapshots.Drop(KeysOf(tokens)[1]);
  EXPECT_EQ(snapshots.bytes(), 2 * border_ + 11 * page_)
      << "pages go with the last that lists them";
  const auto found = snapshots.Find(KeysOf(tokens), 640);
  EXPECT_EQ(found->segments.size(), 2u);
}

TEST_F(SnapshotsTest, FindIsBoundByLimitAndContent) {
  Snapshots snapshots(engine_->state(), 1 << 30);
  std::vector<int32_t> tokens = TinyTokens(300);
  TakeAt(snapshots, tokens, 128);
  TakeAt(snapshots, tokens, 256);
  EXPECT_EQ(snapshots.Find(KeysOf(tokens), 255)->position, 128);
  EXPECT_EQ(snapshots.Find(KeysOf(tokens), 256)->position, 256);
  EXPECT_EQ(snapshots.Find(KeysOf(tokens), 127), nullptr);
  EXPECT_EQ(snapshots.Find(KeysOf(tokens, "other salt"), 300), nullptr);
  tokens[200] ^= 1;
  EXPECT_EQ(snapshots.Find(KeysOf(tokens), 300)->position, 128);
}

TEST_F(SnapshotsTest, BeforeTheFirstBorderThereIsNothingToTake) {
  Snapshots snapshots(engine_->state(), 1 << 30);
  EXPECT_EQ(TakeAt(snapshots, TinyTokens(64), 63), nullptr);
}

TEST_F(SnapshotsTest, TheLeastRecentlyUsedMakesRoom) {
  Snapshots snapshots(engine_->state(), 3 * (border_ + page_));
  std::vector<std::vector<int32_t>> texts;
  for (uint64_t i = 0; i < 3; ++i) {
    texts.push_back(TinyTokens(64, 96, i));
    TakeAt(snapshots, texts.back(), 64);
  }
  EXPECT_EQ(snapshots.bytes(), 3 * (border_ + page_));
  ASSERT_TRUE(snapshots.Find(KeysOf(texts[0]), 64));
  texts.push_back(TinyTokens(64, 96, 3));
  TakeAt(snapshots, texts.back(), 64);
  EXPECT_EQ(snapshots.bytes(), 3 * (border_ + page_));
  EXPECT_EQ(snapshots.evicted(), 1);
  EXPECT_TRUE(snapshots.Find(KeysOf(texts[0]), 64));
  EXPECT_FALSE(snapshots.Find(KeysOf(texts[1]), 64));
  EXPECT_TRUE(snapshots.Find(KeysOf(texts[3]), 64));
}

TEST_F(SnapshotsTest, WhatDoesNotFitIsNotTakenAndCostsNobodyAnything) {
  Snapshots snapshots(engine_->state(), 2 * border_ + 5 * page_);
  const std::vector<int32_t> tokens = TinyTokens(640), other = TinyTokens(64, 96, 5);
  TakeAt(snapshots, other, 64);
  TakeAt(snapshots, tokens, 192);
  EXPECT_EQ(TakeAt(snapshots, tokens, 640), nullptr);
  EXPECT_EQ(snapshots.size(), 2);
  EXPECT_EQ(snapshots.evicted(), 0);
  // Five pages and one border fit where the others go.
  ASSERT_TRUE(TakeAt(snapshots, tokens, 320));
  EXPECT_EQ(snapshots.bytes(), 2 * border_ + 5 * page_);
  EXPECT_FALSE(snapshots.Find(KeysOf(other), 64));
}

TEST_F(SnapshotsTest, OneTextTakesAQuarterOfTheBudgetForItsBorders) {
  const Snapshots snapshots(engine_->state(), 40 * border_);
  EXPECT_EQ(snapshots.Interval(1000, 256), 256);
  EXPECT_EQ(snapshots.Interval(100'000, 256), 10'048) << "ten, on the grid";
}

}  // namespace
}  // namespace mm01::infer
