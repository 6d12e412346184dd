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

// A slot with five pages in no order, in pools whose words all differ.
class PagesProblem {
 public:
  explicit PagesProblem(const TextConfig& config)
      : num_layers_(config.num_layers()),
        state_(TinyState({.num_slots = 2, .max_tokens = 3 * kKvPage}, config)) {
    const int32_t other = *state_.Open();
    slot_ = *state_.Open();
    Reserve(other, 1);
    Reserve(slot_, 1);
    Reserve(other, 2);
    Reserve(slot_, 3);
    state_.Close(other);
    Reserve(slot_, 5);
  }

  // Of page `index`, piece by piece: layers in order, keys before values.
  std::vector<std::byte> Page(int64_t index) const {
    std::vector<std::byte> out;
    const int64_t page = state_.pages(slot_)[static_cast<size_t>(index)];
    for (const Tensor& pool : Pools()) {
      const auto bytes = pool.stride[0] * SizeOf(pool.dtype);
      const auto* at = static_cast<const std::byte*>(pool.data) + page * bytes;
      out.insert(out.end(), at, at + bytes);
    }
    return out;
  }
  void Fill() {
    uint64_t n = 0;
    for (const Tensor& pool : Pools()) {
      auto* words = static_cast<uint64_t*>(pool.data);
      const int64_t count = pool.size() * SizeOf(pool.dtype) / 8;
      for (int64_t i = 0; i < count; ++i) words[i] = ++n;
    }
  }
  void Clear() {
    for (const Tensor& pool : Pools()) {
      std::fill_n(static_cast<std::byte*>(pool.data), pool.size() * SizeOf(pool.dtype),
                  std::byte{0});
    }
  }

  TextState& state() { return state_; }
  int32_t slot() const { return slot_; }

 private:
  void Reserve(int32_t slot, int64_t pages) {
    Check(state_.Reserve(slot, pages * kKvPage).ok(), "there is room");
  }
  std::vector<Tensor> Pools() const {
    std::vector<Tensor> pools;
    for (int64_t i = 0; i < num_layers_; ++i) {
      const PagedKv kv = state_.kv(i);
      pools.insert(pools.end(), {kv.k, kv.v});
    }
    return pools;
  }

  int64_t num_layers_;
  TextState state_;
  int32_t slot_ = 0;
};

TEST(TextStateTest, CopiedPagesLiePageByPageAndGoBackToWhereTheyWere) {
  TextConfig tiny = TinyConfig();
  tiny.layers = {LayerKind::kSoftmax, LayerKind::kSoftmax, LayerKind::kSoftmax};
  TextConfig large = tiny;  // a page is 24 MiB, which go in two parts
  large.layers.pop_back();
  large.head_dim = 256;
  large.num_heads = large.num_kv_heads = 96;
  for (const TextConfig& config : {tiny, large}) {
    PagesProblem problem(config);
    TextState& state = problem.state();
    const int32_t slot = problem.slot();
    const auto page_bytes = static_cast<size_t>(state.page_bytes());
    SCOPED_TRACE(page_bytes);
    Queue queue(2);
    problem.Fill();
    std::vector<std::vector<std::byte>> pages;
    for (int64_t i = 0; i < 5; ++i) pages.push_back(problem.Page(i));
    ASSERT_EQ(pages[0].size(), page_bytes);

    state.Advance(slot, 4 * kKvPage + 1);
    std::vector<std::byte> copy(3 * page_bytes);
    EXPECT_THROW(state.CopyPages(queue, slot, 2, 3, copy.data()), Bug) << "page 4 is not full";
    state.CopyPages(queue, slot, 1, 3, copy.data());
    std::vector<std::byte> wanted;
    for (size_t i : {1, 2, 3}) wanted.insert(wanted.end(), pages[i].begin(), pages[i].end());
    EXPECT_TRUE(copy == wanted);

    state.Rewind(queue, slot, 0, nullptr);
    problem.Clear();
    state.SetPages(queue, slot, 1, 3, copy.data());
    for (int64_t i = 0; i < 5; ++i) {
      const bool is_set = 1 <= i && i <= 3;
      EXPECT_TRUE(problem.Page(i) ==
                  (is_set ? pages[static_cast<size_t>(i)] : std::vector<std::byte>(page_bytes)))
          << "page " << i;
    }
    EXPECT_THROW(state.SetPages(queue, slot, 4, 3, copy.data()), Bug) << "five are reserved";
  }
}

TEST(TextStateTest, TheBorderOfASlotIsItsSLayerByLayer) {
  TextState state = TinyState({.num_slots = 3, .max_tokens = 256});
  Queue queue(1);
  (void)*state.Open();
  const int32_t slot = *state.Open();
  ASSERT_TRUE(state.Reserve(slot, 64).ok());
  state.Advance(slot, 64);
  std::vector<float> wanted;
  for (int64_t layer = 0; layer < std::ssize(TinyConfig().layers); ++layer) {
    if (TinyConfig().layers[static_cast<size_t>(layer)] != LayerKind::kLightning) continue;
    const Tensor s = state.lightning(layer).s;
    auto* at = static_cast<float*>(s.data) + slot * s.stride[0];
    for (int64_t i = 0; i < s.stride[0]; ++i) {
      wanted.push_back(static_cast<float>(wanted.size()));
      at[i] = wanted.back();
    }
  }
  std::vector<float> copy(wanted.size());
  ASSERT_EQ(state.border_bytes(), std::ssize(wanted) * SizeOf(DType::kF32));
  state.CopyBorder(queue, slot, reinterpret_cast<std::byte*>(copy.data()));
  EXPECT_EQ(copy, wanted);
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
