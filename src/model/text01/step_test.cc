#include "model/text01/step.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/check.h"
#include "testing/tiny_model.h"

namespace mm01 {
namespace {

template <typename T>
std::vector<T> Values(const Tensor& t) {
  const T* p = static_cast<const T*>(t.data);
  return {p, p + t.size()};
}

class StepTest : public testing::Test {
 protected:
  StepTest()
      : queue_(1),
        weights_(RandomWeights(queue_, TinyConfig(), {}, 1)),
        state_(TinyConfig(), Shard::Whole(TinyConfig()), {.num_slots = 3, .max_tokens = 512}) {}

  int32_t OpenWith(int64_t begin, int64_t held, int64_t room) {
    const int32_t slot = *state_.Open(begin);
    EXPECT_TRUE(state_.Reserve(slot, held + room).ok());
    state_.Advance(slot, held);
    return slot;
  }

  Queue queue_;
  TextWeights weights_;
  TextState state_;
  TextModel model_{.queue = queue_, .weights = weights_, .state = state_};
};

TEST_F(StepTest, SaysWhereEachSequenceStands) {
  const int32_t a = OpenWith(0, 70, 2), b = OpenWith(5, 0, 1);
  const Step step(model_, {.ids = {1, 2, 3}, .sequences = {{b, 1}, {a, 2}}});

  EXPECT_EQ(step.num_rows(), 3);
  EXPECT_EQ(step.num_sequences(), 2);
  EXPECT_EQ(Values<int64_t>(step.cu_seqlens()), (std::vector<int64_t>{0, 1, 3}));
  EXPECT_EQ(Values<int32_t>(step.slot()), (std::vector<int32_t>{b, a}));
  EXPECT_EQ(Values<int64_t>(step.held()), (std::vector<int64_t>{0, 70}));
  EXPECT_EQ(Values<int64_t>(step.length()), (std::vector<int64_t>{1, 72}));
  EXPECT_EQ(Values<int64_t>(step.begin()), (std::vector<int64_t>{5, 0}));
  EXPECT_EQ(Values<int64_t>(step.position()), (std::vector<int64_t>{5, 70}));
  EXPECT_EQ(Values<int32_t>(step.block_table()), (std::vector<int32_t>{2, -1, 0, 1}))
      << "shorter sequences end in -1";
}

TEST_F(StepTest, AnglesFollowThePositionOfEachRow) {
  const int32_t a = OpenWith(0, 3, 2);
  const Step step(model_, {.ids = {1, 2}, .sequences = {{a, 2}}});
  ASSERT_EQ(step.cos().dim(1), 4) << "half of rotary_dim";
  EXPECT_NEAR(Values<float>(step.cos())[0], std::cos(3.0), 1e-6);
  EXPECT_NEAR(Values<float>(step.sin())[4], std::sin(4.0), 1e-6);
  EXPECT_NEAR(Values<float>(step.sin())[5], std::sin(4.0 / 10.0), 1e-6) << "1e4 ^ (-2 / 8)";
}

TEST_F(StepTest, ASlotTwiceOrRowsThatDoNotAddUpAreBugs) {
  const int32_t a = OpenWith(0, 0, 8);
  EXPECT_THROW(Step(model_, {.ids = {1, 2}, .sequences = {{a, 1}, {a, 1}}}), Bug);
  EXPECT_THROW(Step(model_, {.ids = {1, 2}, .sequences = {{a, 3}}}), Bug);
}

}  // namespace
}  // namespace mm01
