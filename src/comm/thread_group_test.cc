#include "comm/thread_group.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "base/rng.h"

namespace mm01 {
namespace {

std::vector<float> RandomFloats(std::size_t n, uint64_t stream) {
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = static_cast<float>(RandomNormal(1, stream, i));
  return x;
}

void ExpectAloneIsACopy(Group& group) {
  const std::vector<float> x = {1, 2, 3};
  std::vector<float> y = x;
  group.AllReduceSum(y);
  EXPECT_EQ(y, x);
  std::vector<float> z(3);
  group.ReduceScatterSum(x, z);
  EXPECT_EQ(z, x);
  group.AllGather<float>(x, y);
  EXPECT_EQ(y, x);
  const std::vector<int64_t> counts = {3};
  std::vector<float> w(3);
  group.AllToAll<float>(x, counts, w, counts);
  EXPECT_EQ(w, x);
  std::vector<float> v(3);
  group.SendRecv<float>(x, v, 1);
  EXPECT_EQ(v, x);
  group.Broadcast<float>(v, 0);
  group.Barrier();
  EXPECT_EQ(v, x);
}

TEST(SingleGroupTest, CollectivesAreTheIdentity) {
  SingleGroup group;
  ExpectAloneIsACopy(group);
  EXPECT_EQ(group.Split(5, 5)->size(), 1);
}

TEST(ThreadGroupTest, OneRankRunsInTheCallersThread) {
  const auto caller = std::this_thread::get_id();
  ThreadRanks(1).Run([&](int rank, Group& group) {
    EXPECT_EQ(rank, 0);
    EXPECT_EQ(std::this_thread::get_id(), caller);
    ExpectAloneIsACopy(group);
  });
}

TEST(ThreadGroupTest, SumsAreAddedInOrderOfRank) {
  // ((1e8 + 1) - 1e8) + 1 in float32, where 1e8 + 1 is 1e8; any other grouping gives 0 or 2.
  const float terms[] = {1e8f, 1.f, -1e8f, 1.f};
  ThreadRanks(4).Run([&](int rank, Group& group) {
    std::vector<float> x(5, terms[rank]);
    group.AllReduceSum(x);
    EXPECT_EQ(x, std::vector<float>(5, 1.f));
    std::vector<double> y = {static_cast<double>(terms[rank])};
    group.AllReduceSum(y);
    EXPECT_EQ(y[0], 2.0);
  });
}

TEST(ThreadGroupTest, EveryRankGetsTheSameBitsForAnyLength) {
  for (const int n : {2, 3, 5}) {
    for (const std::size_t length : {0u, 1u, 2u, 7u, 511u, 1537u}) {
      std::vector<float> want(length, 0.f);
      for (int r = 0; r < n; ++r) {
        const auto x = RandomFloats(length, static_cast<uint64_t>(r));
        for (std::size_t i = 0; i < length; ++i) want[i] = r == 0 ? x[i] : want[i] + x[i];
      }
      ThreadRanks(n).Run([&](int rank, Group& group) {
        auto x = RandomFloats(length, static_cast<uint64_t>(rank));
        group.AllReduceSum(x);
        EXPECT_EQ(x, want) << n << " ranks, " << length << " elements";
      });
    }
  }
}

TEST(ThreadGroupTest, ReduceScatterGivesEachRankItsPartOfTheSum) {
  ThreadRanks(3).Run([](int rank, Group& group) {
    std::vector<double> in(6);
    for (std::size_t i = 0; i < 6; ++i) in[i] = 10.0 * static_cast<double>(i) + rank;
    std::vector<double> out(2);
    group.ReduceScatterSum(in, out);
    const auto sum = [](int i) { return 30.0 * i + 3.0; };
    EXPECT_EQ(out, (std::vector<double>{sum(2 * rank), sum(2 * rank + 1)}));

    const std::span<double> own = std::span(in).subspan(static_cast<std::size_t>(2 * rank), 2);
    group.ReduceScatterSum(in, own);
    EXPECT_EQ(std::vector<double>(own.begin(), own.end()), out) << "in place";
  });
}

TEST(ThreadGroupTest, AllGatherPutsThePartsInOrderOfRank) {
  ThreadRanks(3).Run([](int rank, Group& group) {
    const std::vector<int32_t> want = {0, 1, 10, 11, 20, 21};
    const std::vector<int32_t> mine = {10 * rank, 10 * rank + 1};
    std::vector<int32_t> all(6, -1);
    group.AllGather<int32_t>(mine, all);
    EXPECT_EQ(all, want);

    std::vector<int32_t> in_place(6, -1);
    const auto own = std::span(in_place).subspan(static_cast<std::size_t>(2 * rank), 2);
    std::copy(mine.begin(), mine.end(), own.begin());
    group.AllGather<int32_t>(own, in_place);
    EXPECT_EQ(in_place, want);
  });
}

// Rank s sends s + d elements of value 100 s + d to rank d; none where s + d = 0.
TEST(ThreadGroupTest, AllToAllMovesPartsOfAnySize) {
  constexpr int kRanks = 4;
  ThreadRanks(kRanks).Run([](int rank, Group& group) {
    std::vector<int64_t> send_counts, sent, want;
    for (int other = 0; other < kRanks; ++other) {
      send_counts.push_back(rank + other);
      sent.insert(sent.end(), static_cast<std::size_t>(rank + other), 100 * rank + other);
      want.insert(want.end(), static_cast<std::size_t>(rank + other), 100 * other + rank);
    }
    std::vector<int64_t> recv_counts(kRanks);
    group.AllToAll<int64_t>(send_counts, recv_counts);
    EXPECT_EQ(recv_counts, send_counts) << "s + d is symmetric";
    std::vector<int64_t> received(want.size());
    group.AllToAll<int64_t>(sent, send_counts, received, recv_counts);
    EXPECT_EQ(received, want);
  });
}

TEST(ThreadGroupTest, BroadcastSendsTheRootsData) {
  ThreadRanks(3).Run([](int rank, Group& group) {
    for (int root = 0; root < 3; ++root) {
      std::vector<std::byte> x(4, static_cast<std::byte>(rank));
      group.Broadcast<std::byte>(x, root);
      EXPECT_EQ(x, std::vector<std::byte>(4, static_cast<std::byte>(root)));
    }
  });
}

TEST(ThreadGroupTest, SendRecvGoesAroundTheRingBothWays) {
  ThreadRanks(3).Run([](int rank, Group& group) {
    // Parts of different sizes: rank r holds r + 1 elements.
    const std::vector<int> x(static_cast<std::size_t>(rank + 1), rank);
    for (const int step : {1, -1, 2, 3, -7}) {
      const int from = ((rank - step) % 3 + 3) % 3;
      std::vector<int> y(static_cast<std::size_t>(from + 1), -1);
      group.SendRecv<int>(x, y, step);
      EXPECT_EQ(y, std::vector<int>(static_cast<std::size_t>(from + 1), from)) << "step " << step;
    }
  });
}

TEST(ThreadGroupTest, NobodyPassesABarrierBeforeAllHaveCome) {
  std::atomic<int> came{0};
  ThreadRanks(4).Run([&](int, Group& group) {
    for (int round = 1; round <= 50; ++round) {
      came.fetch_add(1);
      group.Barrier();
      EXPECT_EQ(came.load(), 4 * round);
      group.Barrier();
    }
  });
}

TEST(ThreadGroupTest, SplitMakesRowsAndColumnsOfAGrid) {
  ThreadRanks(6).Run([](int rank, Group& group) {
    const auto row = group.Split(rank / 3, rank);
    const auto column = group.Split(rank % 3, -rank);  // the key turns the order round
    ASSERT_EQ(row->size(), 3);
    ASSERT_EQ(row->rank(), rank % 3);
    ASSERT_EQ(column->size(), 2);
    ASSERT_EQ(column->rank(), 1 - rank / 3);

    std::vector<double> x = {static_cast<double>(rank)};
    row->AllReduceSum(x);
    EXPECT_EQ(x[0], rank < 3 ? 3.0 : 12.0);
    std::vector<int> mine = {rank}, both(2);
    column->AllGather<int>(mine, both);
    EXPECT_EQ(both, (std::vector<int>{rank % 3 + 3, rank % 3}));

    const auto alone = row->Split(rank, 0);
    EXPECT_EQ(alone->size(), 1);
    const auto again = column->Split(0, column->rank());
    again->Barrier();
    EXPECT_EQ(again->rank(), column->rank());
  });
}

TEST(ThreadGroupTest, AFailedRankEndsTheOthersWaitsAndItsErrorIsThrownAgain) {
  for (int bad = 0; bad < 3; ++bad) {
    std::atomic<int> peers_that_saw_it{0};
    try {
      ThreadRanks(3).Run([&](int rank, Group& group) {
        std::vector<float> x(100, 1.f);
        group.AllReduceSum(x);
        if (rank == bad) throw std::out_of_range("rank " + std::to_string(rank));
        try {
          for (;;) group.AllReduceSum(x);
        } catch (const PeerError&) {
          peers_that_saw_it.fetch_add(1);
          throw;
        }
      });
      FAIL() << "nothing was thrown";
    } catch (const std::out_of_range& e) {
      EXPECT_EQ(e.what(), "rank " + std::to_string(bad));
    }
    EXPECT_EQ(peers_that_saw_it.load(), 2);
  }
}

// Ranks 0 to 2 sum without an end, in memory that goes away with the error, while rank 3, which is
// not of their group, fails: no rank may free what a peer still reads.
TEST(ThreadGroupTest, AFailureElsewhereEndsTheCollectivesOfASubgroup) {
  for (int trial = 0; trial < 20; ++trial) {
    EXPECT_THROW(ThreadRanks(4).Run([](int rank, Group& group) {
      const auto half = group.Split(rank < 3 ? 0 : 1, rank);
      if (rank == 3) throw std::out_of_range("rank 3");
      for (;;) {
        std::vector<float> x(2000, 1.f);
        half->AllReduceSum(x);
        EXPECT_EQ(x[1999], 3.f);
      }
    }),
                 std::out_of_range);
  }
}

TEST(ThreadGroupTest, ARankThatReturnsEarlyIsABugOfTheRun) {
  try {
    ThreadRanks(3).Run([](int rank, Group& group) {
      if (rank != 1) group.Barrier();
    });
    FAIL() << "nothing was thrown";
  } catch (const Bug& e) {
    EXPECT_NE(std::string(e.what()).find("rank 1 of 3 returned"), std::string::npos) << e.what();
  }
}

TEST(ThreadGroupTest, CollectivesThatDisagreeAreABug) {
  const auto run = [](auto body) { ThreadRanks(2).Run(body); };
  EXPECT_THROW(run([](int rank, Group& group) {
                 std::vector<float> x(2);
                 rank == 0 ? group.AllReduceSum(x) : group.Barrier();
               }),
               Bug);
  EXPECT_THROW(run([](int rank, Group& group) {
                 std::vector<float> x(static_cast<std::size_t>(rank + 1));
                 group.AllReduceSum(x);
               }),
               Bug);
  EXPECT_THROW(run([](int rank, Group& group) {
                 std::vector<float> x(2);
                 group.Broadcast<float>(x, rank);
               }),
               Bug);
  EXPECT_THROW(run([](int, Group& group) {
                 const std::vector<float> x(3);
                 std::vector<float> y(3);
                 const std::vector<int64_t> send = {1, 2}, recv = {2, 1};
                 group.AllToAll<float>(x, send, y, recv);
               }),
               Bug);
  EXPECT_THROW(run([](int rank, Group& group) {
                 const std::vector<float> x(3);
                 std::vector<float> y(static_cast<std::size_t>(3 + rank));
                 group.SendRecv<float>(x, y, 1);
               }),
               Bug);
}

TEST(ThreadGroupTest, SizesThatDoNotFitTheGroupAreABug) {
  SingleGroup group;
  std::vector<float> two(2), three(3);
  EXPECT_THROW(group.AllGather<float>(two, three), Bug);
  EXPECT_THROW(group.ReduceScatterSum(two, three), Bug);
  EXPECT_THROW(group.Broadcast<float>(two, 1), Bug);
  EXPECT_THROW(group.SendRecv<float>(two, three, 1), Bug);
  const std::vector<int64_t> short_count = {1}, negative = {-1}, two_counts = {1, 1};
  EXPECT_THROW(group.AllToAll<float>(two, short_count, two, short_count), Bug);
  EXPECT_THROW(group.AllToAll<float>(two, negative, two, negative), Bug);
  EXPECT_THROW(group.AllToAll<float>(two, two_counts, two, two_counts), Bug);
  EXPECT_THROW(ThreadRanks(0), Bug);
}

}  // namespace
}  // namespace mm01
