#include "train/data/step_data.h"

#include <gtest/gtest.h>

#include "testing/tiny_training.h"

namespace mm01::train {
namespace {

class StepDatas : public testing::Test {
 protected:
  static void ExpectSame(const StepData& a, const std::vector<Row>& rows) {
    ASSERT_EQ(a.rows.size(), rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(a.rows[i].ids, rows[i].ids);
      EXPECT_EQ(a.rows[i].targets, rows[i].targets);
      EXPECT_EQ(a.rows[i].cu_seqlens, rows[i].cu_seqlens);
    }
  }
  // Of a step, made when it is asked for.
  std::vector<Row> Plain(int64_t step) {
    Mixer mixer(recipe_, *data_);
    std::vector<Row> rows;
    for (int64_t s = 0; s <= step; ++s) {
      const auto plans = mixer.Next(s);
      if (s < step) continue;
      for (const RowPlan& plan : plans) rows.push_back(mixer.Make(plan).value());
    }
    return rows;
  }

  TinyTraining tiny_;
  Recipe recipe_ = tiny_.Recipe();
  std::shared_ptr<const TrainData> data_ = TrainData::Load(recipe_).value();
};

TEST_F(StepDatas, AheadOrNotAreTheSame) {
  StepDataMaker ahead(recipe_, *data_, {}, 2), plain(recipe_, *data_, {}, 1);
  for (int64_t step = 0; step < 6; ++step) {
    const StepData a = ahead.Take(step, step + 1).value();
    const StepData b = plain.Take(step, std::nullopt).value();
    ExpectSame(a, Plain(step));
    ExpectSame(b, a.rows);
    EXPECT_EQ(ahead.position(), plain.position());
  }
}

TEST_F(StepDatas, ThePositionIsBehindTheStepThatWasTaken) {
  StepDataMaker maker(recipe_, *data_, {}, 2);
  ASSERT_TRUE(maker.Take(0, 1).ok());
  const DataPosition saved = maker.position();
  EXPECT_EQ(saved.rows, 4);
  ASSERT_TRUE(maker.Take(1, 2).ok());
  maker.Seek(saved);  // drops what was made ahead
  ExpectSame(maker.Take(1, 2).value(), Plain(1));
}

TEST_F(StepDatas, RanksGetNeighbouringRows) {
  StepDataMaker first(recipe_, *data_, {0, 2}, 1), second(recipe_, *data_, {1, 2}, 1);
  const StepData a = first.Take(0, 1).value(), b = second.Take(0, 1).value();
  std::vector<Row> rows = a.rows;
  rows.insert(rows.end(), b.rows.begin(), b.rows.end());
  StepDataMaker all(recipe_, *data_, {}, 1);
  ExpectSame(all.Take(0, std::nullopt).value(), rows);
  EXPECT_EQ(a.plans.size(), 4u);
}

}  // namespace
}  // namespace mm01::train
