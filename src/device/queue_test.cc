#include "device/queue.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "base/check.h"

namespace mm01 {
namespace {

bool IsAligned(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 64 == 0;
}

TEST(BufferTest, StartsAsAlignedZeros) {
  for (const int64_t bytes : {1, 63, 64, 1000, 3 << 20, 9 << 20}) {
    const Buffer buffer(bytes);
    EXPECT_EQ(buffer.bytes(), bytes);
    EXPECT_TRUE(IsAligned(buffer.data()));
    for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(buffer.data()[i], std::byte{0}) << i;
  }
}

TEST(BufferTest, NoBytesNeedNoMemory) {
  const Buffer buffer(0);
  EXPECT_EQ(buffer.bytes(), 0);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_THROW(Buffer(-1), Bug);
}

TEST(BufferTest, MovesKeepTheMemory) {
  Buffer a(100);
  a.As<float>()[3] = 5.f;
  const std::byte* memory = a.data();
  Buffer b(std::move(a));
  EXPECT_EQ(b.data(), memory);
  Buffer c(50);
  c = std::move(b);
  EXPECT_EQ(c.data(), memory);
  EXPECT_EQ(c.bytes(), 100);
  EXPECT_EQ(c.As<float>()[3], 5.f);
}

TEST(ScratchTest, PiecesAreAlignedAndApart) {
  Queue queue(1);
  Scratch scratch(queue);
  char* a = scratch.Get<char>(1);
  float* b = scratch.Get<float>(33);
  char* c = scratch.Get<char>(1);
  EXPECT_TRUE(IsAligned(a) && IsAligned(b) && IsAligned(c));
  EXPECT_GE(reinterpret_cast<char*>(b) - a, 1);
  EXPECT_GE(c - reinterpret_cast<char*>(b), 33 * 4);
  EXPECT_THROW(scratch.Get<float>(-1), Bug);
}

TEST(ScratchTest, AnInnerScopeGivesBackAndTheOuterOnesPiecesStay) {
  Queue queue(1);
  Scratch outer(queue);
  int* kept = outer.Get<int>(1000);
  for (int i = 0; i < 1000; ++i) kept[i] = i;
  int64_t settled = 0;
  for (int round = 0; round < 6; ++round) {
    Scratch inner(queue);
    int* piece = inner.Get<int>(1000);
    for (int i = 0; i < 1000; ++i) piece[i] = -1;
    // More than the first chunk holds.
    char* large = inner.Get<char>(3 << 20);
    large[0] = large[(3 << 20) - 1] = 1;
    if (round == 2) settled = queue.scratch_bytes();
    if (round > 2) {
      EXPECT_EQ(queue.scratch_bytes(), settled) << "round " << round;
    }
  }
  int* after = outer.Get<int>(1000);
  for (int i = 0; i < 1000; ++i) after[i] = -2;
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(kept[i], i);
}

TEST(ScratchTest, SettlesOnOneChunkThatHoldsAll) {
  Queue queue(1);
  int64_t settled = 0;
  for (int step = 0; step < 4; ++step) {
    Scratch outer(queue);
    outer.Get<char>(700 << 10);
    {
      Scratch inner(queue);
      inner.Get<char>(700 << 10);
      Scratch innermost(queue);
      innermost.Get<char>(5 << 20);
    }
    outer.Get<char>(2 << 20);
    if (step == 1) settled = queue.scratch_bytes();
    if (step > 1) {
      EXPECT_EQ(queue.scratch_bytes(), settled) << "step " << step;
    }
  }
  Scratch again(queue);
  const char* a = again.Get<char>(700 << 10);
  const char* b = again.Get<char>(5 << 20);
  EXPECT_EQ(b - a, 700 << 10) << "one after the other, in one chunk";
}

TEST(QueueTest, HasThePoolItWasAskedFor) {
  Queue queue(3);
  EXPECT_EQ(queue.num_threads(), 3);
  EXPECT_EQ(queue.scratch_bytes(), 0);
}

}  // namespace
}  // namespace mm01
