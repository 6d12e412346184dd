#include "model/text01/state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "base/check.h"
#include "testing/tiny_model.h"

namespace mm01 {
namespace {

TextState TinyState(const StateSizes& sizes, const TextConfig& config = TinyConfig()) {
  return TextState(config, Shard::Whole(config), sizes);
}

TEST(TextStateTest, SlotsRunOutWithTheirNumber) {
  TextState state = TinyState({.num_slots = 2, .max_tokens = 64});
  ASSERT_EQ(*state.Open(), 0);
  ASSERT_EQ(*state.Open(), 1);
  const Status full = state.Open().status();
  EXPECT_EQ(full.code(), Code::kTooLarge);
  EXPECT_EQ(full.message(), "all 2 sequence slots are in use");
  state.Close(0);
  EXPECT_EQ(*state.Open(), 0);
}

TEST(TextStateTest, PagesRunOutWithTheNumbersAndNothingIsTaken) {
  // One page for 64 tokens, and one more because each sequence rounds up.
  TextState state = TinyState({.num_slots = 1, .max_tokens = 64});
  const int32_t slot = *state.Open();
  ASSERT_EQ(state.max_tokens(), 128);
  const Status status = state.Reserve(slot, 129);
  EXPECT_EQ(status.code(), Code::kTooLarge);
  EXPECT_EQ(status.message(),
            "129 tokens of context do not fit: keys and values have room for 128 in all, 128 of "
            "it free");
  EXPECT_TRUE(state.pages(slot).empty());
  EXPECT_TRUE(state.Reserve(slot, 128).ok());
}

TEST(TextStateTest, PagesOfAClosedSequenceServeTheNext) {
  TextState state = TinyState({.num_slots = 2, .max_tokens = 256});  // six pages
  const int32_t a = *state.Open(), b = *state.Open();
  ASSERT_TRUE(state.Reserve(a, 200).ok());
  ASSERT_TRUE(state.Reserve(b, 65).ok());
  EXPECT_EQ(state.pages(a).size(), 4u);
  EXPECT_EQ(state.pages(b).size(), 2u);
  EXPECT_FALSE(state.Reserve(b, 129).ok());
  state.Close(a);
  ASSERT_TRUE(state.Reserve(b, 6 * 64).ok());
  std::vector<int32_t> pages(state.pages(b).begin(), state.pages(b).end());
  std::ranges::sort(pages);
  EXPECT_EQ(pages, (std::vector<int32_t>{0, 1, 2, 3, 4, 5}));
}

TEST(TextStateTest, BytesOfKeysAndValuesAreCountedByPage) {
  TextState state = TinyState({.num_slots = 1, .max_tokens = 256, .kv_type = DType::kBF16});
  const int32_t slot = *state.Open();
  EXPECT_EQ(state.kv_bytes_used(), 0);
  ASSERT_TRUE(state.Reserve(slot, 65).ok());
  EXPECT_EQ(state.kv_bytes_used(), 2 * (2 * 64 * 2 * 16 * 2)) << "2 pages: k, v, B, G, K, bf16";
  // 3 lightning layers, 4 heads: S and two times 64 rows, float32.
  EXPECT_EQ(state.lightning_bytes(), 3 * 4 * (16 * 16 + 2 * 64 * 16) * 4);
}

TEST(TextStateTest, AdvancePastWhatWasReservedIsABug) {
  TextState state = TinyState({.num_slots = 1, .max_tokens = 256});
  const int32_t slot = *state.Open();
  ASSERT_TRUE(state.Reserve(slot, 64).ok());
  state.Advance(slot, 64);
  EXPECT_EQ(state.length(slot), 64);
  EXPECT_THROW(state.Advance(slot, 1), Bug);
}

TEST(TextStateTest, RewindGoesBackToABorderThatWasPassed) {
  TextState state = TinyState({.num_slots = 1, .max_tokens = 256});
  Queue queue(1);
  const int32_t slot = *state.Open();
  ASSERT_TRUE(state.Reserve(slot, 200).ok());
  state.Advance(slot, 130);
  std::vector<std::byte> border(static_cast<size_t>(state.border_bytes()));
  state.CopyBorder(queue, slot, border.data());
  state.Advance(slot, 70);
  EXPECT_THROW(state.Rewind(queue, slot, 130, border.data()), Bug);
  EXPECT_THROW(state.Rewind(queue, slot, 256, border.data()), Bug);
  state.Rewind(queue, slot, 128, border.data());
  EXPECT_EQ(state.length(slot), 128);
  state.Advance(slot, 72);  // the room is still there
  state.Rewind(queue, slot, 0, nullptr);
  EXPECT_EQ(state.length(slot), 0);
}

TEST(TextStateTest, TruncateGoesBackToTheLastBorderAndNoFurther) {
  TextState state = TinyState({.num_slots = 1, .max_tokens = 256});
  const int32_t slot = *state.Open();
  ASSERT_TRUE(state.Reserve(slot, 130).ok());
  state.Advance(slot, 130);
  EXPECT_THROW(state.Truncate(slot, 127), Bug);
  EXPECT_THROW(state.Truncate(slot, 131), Bug);
  state.Truncate(slot, 128);
  EXPECT_EQ(state.length(slot), 128);
  EXPECT_THROW(state.Truncate(slot, 127), Bug);
}

TEST(TextStateTest, ALightningModelHasNoPagesAndAnyLength) {
  TextConfig config = TinyConfig();
  config.layers = {LayerKind::kLightning, LayerKind::kLightning};
  TextState state = TinyState({.num_slots = 1, .max_tokens = 64}, config);
  const int32_t slot = *state.Open();
  EXPECT_TRUE(state.Reserve(slot, int64_t{1} << 40).ok());
  state.Advance(slot, int64_t{1} << 40);
  EXPECT_TRUE(state.pages(slot).empty());
  EXPECT_EQ(state.kv_bytes_used(), 0);
}

TEST(TextStateTest, ARankHoldsItsHeadsOnly) {
  const TextConfig config = TinyConfig();
  const Shard half{.heads = {2, 4}, .kv_heads = {1, 2}, .experts = {2, 4}};
  const TextState state(config, half, {.num_slots = 1, .max_tokens = 64});
  EXPECT_EQ(state.lightning(0).s.dim(1), 2);
  EXPECT_EQ(state.kv(2).k.dim(1), 1);
}

TEST(TextStateTest, WrongSlotsAndWrongLayersAreBugs) {
  TextState state = TinyState({.num_slots = 1, .max_tokens = 64});
  EXPECT_THROW(state.length(0), Bug) << "not open";
  EXPECT_THROW(state.length(1), Bug);
  EXPECT_THROW(state.length(-1), Bug);
  EXPECT_THROW(state.lightning(2), Bug);
  EXPECT_THROW(state.kv(0), Bug);
  EXPECT_THROW(TinyState({.num_slots = 0}), Bug);
  EXPECT_THROW(TinyState({.kv_type = DType::kI8}), Bug);
}

TEST(TextStateTest, ASequenceMayBeginLater) {
  TextState state = TinyState({.num_slots = 1, .max_tokens = 64});
  const int32_t slot = *state.Open(37);
  EXPECT_EQ(state.begin(slot), 37);
  EXPECT_EQ(state.length(slot), 0);
  state.Close(slot);
  EXPECT_EQ(state.begin(*state.Open()), 0);
}

}  // namespace
}  // namespace mm01
