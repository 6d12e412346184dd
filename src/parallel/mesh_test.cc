#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "comm/thread_group.h"

namespace mm01 {
namespace {

TEST(SplitEvenlyTest, FirstPartsTakeTheRemainder) {
  EXPECT_EQ(SplitEvenly(10, 4, 0), (Range{0, 3}));
  EXPECT_EQ(SplitEvenly(10, 4, 1), (Range{3, 6}));
  EXPECT_EQ(SplitEvenly(10, 4, 2), (Range{6, 8}));
  EXPECT_EQ(SplitEvenly(10, 4, 3), (Range{8, 10}));
  EXPECT_EQ(SplitEvenly(2, 3, 2), (Range{2, 2})) << "more parts than items";
  EXPECT_EQ(SplitEvenly(0, 1, 0), (Range{0, 0}));
}

TEST(SplitEvenlyTest, PartsCoverEveryItemOnce) {
  for (int64_t n = 0; n < 30; ++n) {
    for (int64_t size = 1; size < 9; ++size) {
      int64_t next = 0;
      for (int64_t rank = 0; rank < size; ++rank) {
        const Range part = SplitEvenly(n, size, rank);
        EXPECT_EQ(part.begin, next);
        EXPECT_GE(part.size(), n / size);
        EXPECT_LE(part.size(), (n + size - 1) / size);
        next = part.end;
      }
      EXPECT_EQ(next, n);
    }
  }
}

TEST(SplitEvenlyTest, ARankOutsideTheGroupIsABug) {
  EXPECT_THROW(SplitEvenly(4, 2, 2), Bug);
  EXPECT_THROW(SplitEvenly(4, 2, -1), Bug);
  EXPECT_THROW(SplitEvenly(-1, 2, 0), Bug);
}

TEST(MeshTest, SingleIsThreeGroupsOfOne) {
  const Mesh mesh = Mesh::Single();
  for (const Group* group : {mesh.tensor, mesh.expert, mesh.sequence}) {
    ASSERT_NE(group, nullptr);
    EXPECT_EQ(group->size(), 1);
  }
}

// The ranks of the world that `group` holds, in its order.
std::vector<int> Members(Group& group, int world_rank) {
  std::vector<int> all(static_cast<std::size_t>(group.size()));
  group.AllGather<int>(std::vector<int>{world_rank}, all);
  return all;
}

TEST(MeshTest, TensorRanksAreNeighboursAndSequenceRanksStride) {
  ThreadRanks(4).Run([](int rank, Group& world) {
    const auto groups = MeshGroups::Make(world, {.tensor = 2, .expert = 4, .sequence = 2});
    ASSERT_TRUE(groups.ok());
    const Mesh& mesh = groups->mesh();
    const int pair = rank / 2 * 2;
    EXPECT_EQ(Members(*mesh.tensor, rank), (std::vector<int>{pair, pair + 1}));
    EXPECT_EQ(Members(*mesh.sequence, rank), (std::vector<int>{rank % 2, rank % 2 + 2}));
    EXPECT_EQ(Members(*mesh.expert, rank), (std::vector<int>{0, 1, 2, 3}));
    EXPECT_EQ(mesh.sequence->rank() * 2 + mesh.tensor->rank(), rank);
  });
}

TEST(MeshTest, ExpertsMayLieOnTheTensorGroupOrOnEachRank) {
  ThreadRanks(4).Run([](int rank, Group& world) {
    const auto on_tensor = MeshGroups::Make(world, {.tensor = 2, .expert = 2, .sequence = 2});
    ASSERT_TRUE(on_tensor.ok());
    EXPECT_EQ(Members(*on_tensor->mesh().expert, rank), Members(*on_tensor->mesh().tensor, rank));

    const auto on_each = MeshGroups::Make(world, {.tensor = 4});
    ASSERT_TRUE(on_each.ok());
    EXPECT_EQ(on_each->mesh().expert->size(), 1);
    EXPECT_EQ(on_each->mesh().tensor->size(), 4);
    EXPECT_EQ(on_each->mesh().sequence->size(), 1);
  });
}

TEST(MeshTest, SizesThatDoNotFitTheWorldAreAnErrorWithTheNumbers) {
  const Status product = MeshSizes{.tensor = 2, .sequence = 3}.Validate(4);
  EXPECT_EQ(product.code(), Code::kInvalid);
  EXPECT_NE(product.message().find("6 ranks, but 4 run"), std::string::npos) << product.message();
  EXPECT_EQ((MeshSizes{.tensor = 0}.Validate(1).code()), Code::kInvalid);
  EXPECT_EQ((MeshSizes{.tensor = 65536, .sequence = 65536}.Validate(0).code()), Code::kInvalid);
  EXPECT_EQ((MeshSizes{.tensor = 1, .expert = 2, .sequence = 4}.Validate(4).code()),
            Code::kUnsupported);
  SingleGroup alone;
  EXPECT_FALSE(MeshGroups::Make(alone, {.tensor = 2}).ok());
}

}  // namespace
}  // namespace mm01
