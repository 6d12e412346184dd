// Ranks with some of the experts each against one rank with all of them, to the bit.
#include "parallel/expert_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "comm/thread_group.h"
#include "parallel/mesh.h"
#include "testing/arrays.h"

namespace mm01 {
namespace {

constexpr int64_t kExperts = 8, kChosen = 2, kWidth = 24, kFfn = 20;

Weight RandomWeight(uint64_t stream, int64_t n, int64_t k) {
  const std::vector<float> values = RandomFloats(stream, n * k);
  Weight w({}, n, k);
  for (int64_t i = 0; i < n; ++i) {
    w.SetRow(i, std::span(values).subspan(static_cast<size_t>(i * k), static_cast<size_t>(k)));
  }
  return w;
}

std::vector<ExpertWeights> MakeExperts(Range range) {
  std::vector<ExpertWeights> experts;
  for (int64_t e = range.begin; e < range.end; ++e) {
    const auto stream = static_cast<uint64_t>(100 + 3 * e);
    experts.push_back({.w1 = RandomWeight(stream, kFfn, kWidth),
                       .w2 = RandomWeight(stream + 1, kWidth, kFfn),
                       .w3 = RandomWeight(stream + 2, kFfn, kWidth)});
  }
  return experts;
}

// Tokens begin .. begin + count - 1 of one text, routed; every fourth to the same two experts.
class Tokens {
 public:
  Tokens(int64_t begin, int64_t count) : count_(count) {
    const std::vector<float> x = RandomFloats(1, 100 * kWidth), logits = RandomFloats(2, 100 * 8);
    x_.assign(x.begin() + begin * kWidth, x.begin() + (begin + count) * kWidth);
    logits_.assign(logits.begin() + begin * kExperts, logits.begin() + (begin + count) * kExperts);
    for (int64_t t = 0; t < count; ++t) {
      if ((begin + t) % 4 == 0) logits_[static_cast<size_t>(t * kExperts + 5)] = 9.0f;
    }
    chosen_.resize(static_cast<size_t>(count * kChosen));
    weights_.resize(chosen_.size());
    out_.assign(x_.size(), kNaN);
  }

  std::vector<float> Run(const ExpertGroups& groups, std::span<const ExpertWeights> experts) {
    Queue queue(1);
    const Tensor chosen(chosen_.data(), {count_, kChosen});
    const Tensor weights(weights_.data(), {count_, kChosen});
    Route(queue, {.logits = Tensor(logits_.data(), {count_, kExperts}),
                  .experts = chosen,
                  .weights = weights});
    ExpertExchange(queue, groups,
                   {.x = Tensor(x_.data(), {count_, kWidth}),
                    .chosen = chosen,
                    .weights = weights,
                    .num_experts = kExperts,
                    .experts = experts,
                    .out = Tensor(out_.data(), {count_, kWidth})});
    return out_;
  }

 private:
  int64_t count_;
  std::vector<float> x_, logits_, weights_, out_;
  std::vector<int32_t> chosen_;
};

std::vector<float> OneRank(int64_t begin, int64_t count) {
  SingleGroup alone;
  return Tokens(begin, count).Run({.expert = alone, .replicas = alone}, MakeExperts({0, kExperts}));
}

std::vector<ExpertWeights> ExpertsOf(const Group& group) {
  return MakeExperts(SplitEvenly(kExperts, group.size(), group.rank()));
}

TEST(ExpertExchangeTest, RanksWithTokensOfTheirOwnGiveTheBitsOfOneRank) {
  for (const std::vector<int64_t>& counts :
       std::vector<std::vector<int64_t>>{{5, 5}, {1, 9}, {0, 4}, {0, 0}, {3, 0, 17, 1}}) {
    ThreadRanks(static_cast<int>(counts.size())).Run([&](int rank, Group& world) {
      SingleGroup alone;
      const int64_t count = counts[static_cast<size_t>(rank)];
      const std::vector<float> got =
          Tokens(20 * rank, count).Run({.expert = world, .replicas = alone}, ExpertsOf(world));
      EXPECT_TRUE(SameBits(got, OneRank(20 * rank, count))) << "rank " << rank;
    });
  }
}

TEST(ExpertExchangeTest, RanksWithTheSameTokensGiveTheBitsOfOneRank) {
  for (const int ranks : {2, 4}) {
    for (const int64_t count : {0, 1, 2, 3, 7, 50}) {
      const std::vector<float> want = OneRank(0, count);
      ThreadRanks(ranks).Run([&](int, Group& world) {
        const std::vector<float> got =
            Tokens(0, count).Run({.expert = world, .replicas = world}, ExpertsOf(world));
        EXPECT_TRUE(SameBits(got, want)) << ranks << " ranks, " << count << " tokens";
      });
    }
  }
}

TEST(ExpertExchangeTest, ExpertsOverAllRanksWhileTwoAndTwoHoldTheSameTokens) {
  ThreadRanks(4).Run([&](int rank, Group& world) {
    const auto groups = MeshGroups::Make(world, {.tensor = 2, .expert = 4, .sequence = 2});
    ASSERT_TRUE(groups.ok());
    const Mesh& mesh = groups->mesh();
    const int64_t begin = 30 * (rank / 2), count = rank / 2 == 0 ? 13 : 6;
    const std::vector<float> got =
        Tokens(begin, count)
            .Run({.expert = *mesh.expert, .replicas = *mesh.tensor}, ExpertsOf(*mesh.expert));
    EXPECT_TRUE(SameBits(got, OneRank(begin, count)));
  });
}

TEST(ExpertExchangeTest, EveryRankMayHoldEveryExpert) {
  const std::vector<float> want = OneRank(0, 9);
  ThreadRanks(2).Run([&](int, Group& world) {
    SingleGroup alone;
    const std::vector<float> got =
        Tokens(0, 9).Run({.expert = alone, .replicas = world}, MakeExperts({0, kExperts}));
    EXPECT_TRUE(SameBits(got, want));
  });
}

TEST(ExpertExchangeTest, ExpertsThatTheRanksDoNotDivideAreABug) {
  EXPECT_THROW(ThreadRanks(3).Run([&](int, Group& world) {
    Tokens(0, 4).Run({.expert = world, .replicas = world}, MakeExperts({0, 2}));
  }),
               Bug);
}

}  // namespace
}  // namespace mm01
