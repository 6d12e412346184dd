// Several ranks, as threads, against one: heads, experts and sequence split, on
// tests/goldens/text-tiny.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "comm/thread_group.h"
#include "model/text01/forward.h"
#include "parallel/mesh.h"
#include "testing/arrays.h"
#include "testing/tiny_model.h"

namespace mm01 {
namespace {

using Ids = std::vector<int32_t>;

constexpr int64_t kVocabulary = 259;

class RanksTest : public testing::Test {
 protected:
  // The logits that one rank works out for its part of the tokens.
  std::vector<float> RunPart(const Mesh& mesh, const Ids& ids) const {
    Queue queue(1);
    const Shard shard = Shard::Of(config_, mesh).value();
    const TextWeights weights = LoadWeights(queue, checkpoint_, config_, {}, shard).value();
    const Range part =
        SplitEvenly(static_cast<int64_t>(ids.size()), mesh.sequence->size(), mesh.sequence->rank());
    const int64_t rows = part.size(), width = config_.hidden_size;
    TextState state(config_, shard, {.num_slots = 1, .max_tokens = rows});
    const int32_t slot = *state.Open(part.begin);
    Check(state.Reserve(slot, rows).ok(), "no room");
    std::vector<float> hidden(static_cast<size_t>(rows * width));
    std::vector<float> logits(static_cast<size_t>(rows * kVocabulary));
    const TextModel model{.queue = queue, .weights = weights, .state = state, .mesh = mesh};
    Forward(
        model,
        {.ids = {ids.begin() + part.begin, ids.begin() + part.end}, .sequences = {{slot, rows}}},
        Tensor(hidden.data(), {rows, width}));
    Logits(model, Tensor(hidden.data(), {rows, width}), Tensor(logits.data(), {rows, kVocabulary}));
    return logits;
  }

  // The logits of all tokens, of which tensor ranks must agree to the bit.
  std::vector<float> RunRanks(const MeshSizes& sizes, const Ids& ids) const {
    const int ranks = sizes.tensor * sizes.sequence;
    std::vector<std::vector<float>> logits(static_cast<size_t>(ranks));
    ThreadRanks(ranks).Run([&](int rank, Group& world) {
      const MeshGroups groups = MeshGroups::Make(world, sizes).value();
      logits[static_cast<size_t>(rank)] = RunPart(groups.mesh(), ids);
    });
    std::vector<float> all;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto& mine = logits[static_cast<size_t>(rank)];
      if (rank % sizes.tensor == 0) {
        all.insert(all.end(), mine.begin(), mine.end());
      } else {
        EXPECT_TRUE(SameBits(mine, logits[static_cast<size_t>(rank - 1)])) << "rank " << rank;
      }
    }
    return all;
  }

  void ExpectEqualsOneRank(const MeshSizes& sizes, int64_t num_tokens) const {
    const Ids ids = TinyTokens(num_tokens, kVocabulary);
    const std::vector<float> one = RunPart(Mesh::Single(), ids);
    EXPECT_LE(RelativeError(RunRanks(sizes, ids), one), 1e-6)
        << "tensor " << sizes.tensor << ", expert " << sizes.expert << ", sequence "
        << sizes.sequence << ", " << num_tokens << " tokens";
  }

  const std::string folder_ = std::string(MM01_SOURCE_DIR) + "/tests/goldens/text-tiny";
  const TextConfig config_ = LoadTextConfig(folder_).value();
  const Checkpoint checkpoint_ = Checkpoint::Open(folder_).value();
};

TEST_F(RanksTest, AMeshOfOneIsNoMeshToTheBit) {
  const Ids ids = TinyTokens(50, kVocabulary);
  EXPECT_TRUE(SameBits(RunRanks({}, ids), RunPart(Mesh::Single(), ids)));
}

TEST_F(RanksTest, HeadsAreSplitOverTensorRanks) {
  ExpectEqualsOneRank({.tensor = 2}, 50);
  ExpectEqualsOneRank({.tensor = 4}, 50);  // two ranks share each kv head
}

TEST_F(RanksTest, ExpertsAreSplitOverTensorRanks) {
  ExpectEqualsOneRank({.tensor = 2, .expert = 2}, 50);
  ExpectEqualsOneRank({.tensor = 4, .expert = 4}, 51);
}

TEST_F(RanksTest, TokensAreSplitOverSequenceRanks) {
  ExpectEqualsOneRank({.sequence = 2}, 50);
  ExpectEqualsOneRank({.sequence = 4}, 50);  // 13, 13, 12, 12
  ExpectEqualsOneRank({.sequence = 4}, 130);
  ExpectEqualsOneRank({.sequence = 2}, 129);
}

TEST_F(RanksTest, ATextMayBeShorterThanTheRanksAreMany) {
  ExpectEqualsOneRank({.sequence = 4}, 2);
  ExpectEqualsOneRank({.expert = 4, .sequence = 4}, 2);
}

TEST_F(RanksTest, ExpertsAreSplitOverAllRanks) {
  ExpectEqualsOneRank({.expert = 2, .sequence = 2}, 50);
  ExpectEqualsOneRank({.expert = 4, .sequence = 4}, 130);
}

TEST_F(RanksTest, HeadsAndTokensAreSplitTogether) {
  ExpectEqualsOneRank({.tensor = 2, .sequence = 2}, 50);
  ExpectEqualsOneRank({.tensor = 2, .expert = 2, .sequence = 2}, 130);
  ExpectEqualsOneRank({.tensor = 2, .expert = 4, .sequence = 2}, 51);
}

TEST_F(RanksTest, WhereTheExpertsLieDoesNotShowToTheBit) {
  const Ids ids = TinyTokens(51, kVocabulary);
  const std::vector<float> tensor = RunRanks({.tensor = 2}, ids);
  EXPECT_TRUE(SameBits(RunRanks({.tensor = 2, .expert = 2}, ids), tensor));
  const std::vector<float> sequence = RunRanks({.sequence = 4}, ids);
  EXPECT_TRUE(SameBits(RunRanks({.expert = 4, .sequence = 4}, ids), sequence));
  const std::vector<float> both = RunRanks({.tensor = 2, .sequence = 2}, ids);
  EXPECT_TRUE(SameBits(RunRanks({.tensor = 2, .expert = 4, .sequence = 2}, ids), both));
}

TEST_F(RanksTest, RanksThatDivideNothingAreAnErrorWithTheNumbers) {
  ThreadRanks(3).Run([&](int, Group& world) {
    const MeshGroups heads = MeshGroups::Make(world, {.tensor = 3}).value();
    const Status no_heads = Shard::Of(config_, heads.mesh()).status();
    EXPECT_EQ(no_heads.code(), Code::kUnsupported);
    EXPECT_EQ(no_heads.message(), "4 heads and 2 kv heads cannot be split over 3 tensor ranks");
    const MeshGroups experts = MeshGroups::Make(world, {.expert = 3, .sequence = 3}).value();
    const Status no_experts = Shard::Of(config_, experts.mesh()).status();
    EXPECT_EQ(no_experts.code(), Code::kUnsupported);
    EXPECT_EQ(no_experts.message(), "4 experts cannot be split evenly over 3 ranks");
  });
}

TEST_F(RanksTest, RanksShareAKvHeadWhereTheyOutnumberThem) {
  ThreadRanks(4).Run([&](int rank, Group& world) {
    const MeshGroups groups = MeshGroups::Make(world, {.tensor = 4, .expert = 4}).value();
    const Shard shard = Shard::Of(config_, groups.mesh()).value();
    EXPECT_EQ(shard.heads, (Range{rank, rank + 1}));
    EXPECT_EQ(shard.kv_heads, (Range{rank / 2, rank / 2 + 1}));
    EXPECT_EQ(shard.experts, (Range{rank, rank + 1}));
  });
}

}  // namespace
}  // namespace mm01
