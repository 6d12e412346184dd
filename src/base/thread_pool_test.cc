#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"

namespace mm01 {
namespace {

TEST(ThreadPoolTest, EveryItemRunsOnceOnAThreadOfThePool) {
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (const int64_t num_items : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(num_items));
      std::atomic<bool> thread_in_range{true};
      pool.ParallelFor(num_items, [&](int64_t item, int thread) {
        runs[static_cast<std::size_t>(item)].fetch_add(1);
        if (thread < 0 || thread >= num_threads) thread_in_range = false;
      });
      for (const auto& count : runs) EXPECT_EQ(count.load(), 1);
      EXPECT_TRUE(thread_in_range);
    }
  }
}

TEST(ThreadPoolTest, ItemsOfOneThreadNumberDoNotOverlap) {
  // A plain counter for each thread: only its owner may touch it, which TSan watches.
  ThreadPool pool(3);
  std::vector<int64_t> items(3, 0);
  pool.ParallelFor(10000, [&](int64_t, int thread) { ++items[static_cast<std::size_t>(thread)]; });
  EXPECT_EQ(items[0] + items[1] + items[2], 10000);
}

TEST(ThreadPoolTest, WhatOneLoopWritesTheNextOneReads) {
  ThreadPool pool(3);
  std::vector<int64_t> x(100, 0);
  for (int64_t round = 0; round < 500; ++round) {
    // Each item reads what another item, most likely of another thread, wrote a round ago.
    std::vector<int64_t> y(x.size());
    pool.ParallelFor(100, [&](int64_t i, int) {
      y[static_cast<std::size_t>(i)] = x[static_cast<std::size_t>((i + 37) % 100)] + 1;
    });
    x.swap(y);
  }
  EXPECT_EQ(x, std::vector<int64_t>(100, 500));
}

TEST(ThreadPoolTest, ThreadsThatComeLateFindNothingOfAnotherLoop) {
  // Loops so short that most end before all of their threads have looked.
  ThreadPool pool(6);
  for (int64_t round = 0; round < 20000; ++round) {
    const int64_t num_items = 2 + round % 3;
    std::vector<int64_t> runs(static_cast<size_t>(num_items), 0);
    pool.ParallelFor(num_items, [&runs, round](int64_t item, int) {
      runs[static_cast<size_t>(item)] += round + 1;
    });
    ASSERT_EQ(runs, std::vector<int64_t>(static_cast<size_t>(num_items), round + 1));
  }
}

TEST(ThreadPoolTest, APoolOfOneRunsInOrderInTheCallersThread) {
  ThreadPool pool(1);
  std::vector<int64_t> order;
  const auto caller = std::this_thread::get_id();
  pool.ParallelFor(5, [&](int64_t item, int) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    order.push_back(item);
  });
  EXPECT_EQ(order, (std::vector<int64_t>{0, 1, 2, 3, 4}));
}

TEST(ThreadPoolTest, AnErrorOfAnItemReachesTheCallerAndThePoolGoesOn) {
  for (const int num_threads : {1, 4}) {
    ThreadPool pool(num_threads);
    for (int round = 0; round < 20; ++round) {
      try {
        pool.ParallelFor(50, [](int64_t item, int) {
          if (item % 10 == 3) throw std::runtime_error("item " + std::to_string(item));
        });
        FAIL() << "nothing was thrown";
      } catch (const std::runtime_error& e) {
        EXPECT_EQ(std::string(e.what()).substr(0, 5), "item ");
      }
      std::atomic<int> runs{0};
      pool.ParallelFor(50, [&](int64_t, int) { runs.fetch_add(1); });
      EXPECT_EQ(runs.load(), 50) << "after an error";
    }
  }
}

TEST(ThreadPoolTest, PoolsThatNeverRanAnythingEnd) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(3);
}

TEST(ThreadPoolTest, SleepingWorkersWakeForTheNextLoop) {
  ThreadPool pool(3);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // far past the spinning
    std::atomic<int> runs{0};
    pool.ParallelFor(20, [&](int64_t, int) { runs.fetch_add(1); });
    EXPECT_EQ(runs.load(), 20);
  }
}

TEST(ThreadPoolTest, APoolOfNoThreadIsABug) {
  EXPECT_THROW(ThreadPool(0), Bug);
}

}  // namespace
}  // namespace mm01
