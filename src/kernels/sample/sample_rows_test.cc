#include "kernels/sample/sample_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/rng.h"
#include "testing/arrays.h"

namespace mm01 {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();
using Changes = std::vector<std::pair<int32_t, float>>;

// Peaked or flat, with equals or masked tokens.
std::vector<float> Row(uint64_t stream, int64_t vocabulary) {
  std::vector<float> x = RandomFloats(stream, vocabulary);
  for (size_t i = 0; i < x.size(); ++i) {
    if (stream % 4 == 0) x[i] *= 8;
    if (stream % 4 == 1) x[i] = std::round(4 * x[i]);
    if (stream % 4 == 2 && RandomUniform(9, stream, i) < 0.9) x[i] = kMasked;
  }
  return x;
}

int32_t OfRows(Queue& queue, std::vector<float>& x, const RowDraw& draw) {
  int32_t token = 0;
  SampleRows(queue, Tensor(x.data(), {1, std::ssize(x)}), {&draw, 1}, {&token, 1});
  return token;
}

// What Sample says of the whole row with its changes.
int32_t OfAll(std::vector<float> x, const RowDraw& draw) {
  for (const auto& [id, change] : draw.changes) x[static_cast<size_t>(id)] += change;
  return Sample(x, draw.params, draw.previous, draw.request, draw.position);
}

struct Count {
  int drawn = 0, none = 0;
};

// Many rows and positions; every token that is given must be Sample's.
Count Compare(Queue& queue, const SamplingParams& params, const Changes& changes = {},
              const std::vector<int32_t>& previous = {}) {
  Count count;
  for (const int64_t vocabulary : {1, 64, 1023, 1024, 1025, 5000}) {
    for (uint64_t stream = 0; stream < 4; ++stream) {
      std::vector<float> x = Row(stream, vocabulary);
      x[0] = 0;
      RowDraw draw{.params = params, .previous = previous, .changes = changes};
      for (draw.position = 0; draw.position < 5; ++draw.position) {
        const int32_t token = OfRows(queue, x, draw);
        ++(token < 0 ? count.none : count.drawn);
        if (token >= 0) {
          EXPECT_EQ(token, OfAll(x, draw)) << "of " << vocabulary << ", row " << stream;
        }
      }
    }
  }
  return count;
}

class SampleRowsTest : public testing::Test {
 protected:
  Queue queue_{1};
};

TEST_F(SampleRowsTest, GreedyAndTopKAreDrawnFromFew) {
  EXPECT_EQ(Compare(queue_, {.temperature = 0}).none, 0);
  for (const int k : {1, 2, 50, 1024}) {
    for (const double p : {0.3, 0.95, 1.0}) {
      for (const double min_p : {0.0, 0.1}) {
        const SamplingParams params = {
            .temperature = 0.7, .top_k = k, .top_p = p, .min_p = min_p, .seed = 4};
        EXPECT_EQ(Compare(queue_, params).none, 0);
      }
    }
  }
  EXPECT_EQ(Compare(queue_, {.temperature = 1, .top_k = 1025}).drawn, 0) << "more than come back";
}

TEST_F(SampleRowsTest, WithoutTopKSumsDecide) {
  for (const double t : {0.2, 1.0, 3.0}) {
    EXPECT_EQ(Compare(queue_, {.temperature = t, .seed = 2}).none, 0);
    for (const double p : {0.05, 0.5, 0.9}) {
      const Count count = Compare(queue_, {.temperature = t, .top_p = p, .seed = 2});
      EXPECT_GT(count.drawn, count.none);
    }
    const Count count = Compare(queue_, {.temperature = t, .top_p = 0.9, .min_p = 0.05});
    EXPECT_GT(count.drawn, count.none);
    Compare(queue_, {.temperature = t, .min_p = 0.2});
  }
  EXPECT_GT(Compare(queue_, {.temperature = 1e6, .top_p = 0.999}).none, 0) << "all are kept";
}

TEST_F(SampleRowsTest, PenaltiesAndChangesThatLowerNeedAsManyMore) {
  const Changes changes = {{0, -3.f}, {0, -1.f}, {0, -1e30f}};
  const std::vector<int32_t> previous = {0, 0, 0};
  for (const double t : {0.0, 0.8}) {
    const SamplingParams params = {.temperature = t, .top_k = 20, .seed = 1};
    EXPECT_EQ(Compare(queue_, params, changes).none, 0);
    SamplingParams penalty = params;
    penalty.repetition_penalty = 1.3;
    EXPECT_EQ(Compare(queue_, penalty, changes, previous).none, 0);
    penalty.repetition_penalty = 0.9;
    EXPECT_EQ(Compare(queue_, penalty, {}, previous).drawn, 0) << "raises";
  }
  EXPECT_EQ(Compare(queue_, {.temperature = 0}, {{0, 1.f}}).drawn, 0) << "raises";
  EXPECT_EQ(Compare(queue_, {.temperature = 1}, changes).drawn, 0) << "sums are of the raw logits";
}

TEST_F(SampleRowsTest, ADrawAtABorderIsNotGiven) {
  // 1,500 tokens of one weight.
  std::vector<float> x(2000, kMasked);
  for (size_t i = 0; i < 1500; ++i) x[i] = 1;
  RowDraw draw{.params = {.temperature = 1}};
  int given = 0;
  for (draw.position = 0; draw.position < 200; ++draw.position) {
    const int32_t token = OfRows(queue_, x, draw);
    if (token < 0) continue;
    ++given;
    EXPECT_EQ(token, OfAll(x, draw));
  }
  EXPECT_GT(given, 190);
  draw.params.top_p = 0.5;  // which of equals are kept is decided by id, beyond what came back
  EXPECT_EQ(OfRows(queue_, x, draw), -1);
}

TEST_F(SampleRowsTest, RowsOfOneCallAreDrawnEachByItself) {
  constexpr int64_t kVocabulary = 3000;
  std::vector<float> x;
  for (uint64_t r = 0; r < 5; ++r) {
    const std::vector<float> row = Row(r, kVocabulary);
    x.insert(x.end(), row.begin(), row.end());
  }
  x[kVocabulary + 7] = std::numeric_limits<float>::quiet_NaN();
  const Changes raise = {{3, 1.f}};
  const std::vector<RowDraw> draws = {{.params = {.temperature = 0}},
                                      {.params = {.temperature = 0}},
                                      {.params = {.temperature = 1, .top_k = 9}, .position = 3},
                                      {.params = {.temperature = 0}, .changes = raise},
                                      {.params = {.temperature = 1, .seed = 8}, .request = 2}};
  std::vector<int32_t> token(5);
  SampleRows(queue_, Tensor(x.data(), {5, kVocabulary}), draws, token);
  for (size_t r = 0; r < 5; ++r) {
    const auto row = std::span(x).subspan(r * kVocabulary, kVocabulary);
    const bool none = r == 1 || r == 3;
    EXPECT_EQ(token[r], none ? -1 : OfAll({row.begin(), row.end()}, draws[r])) << "row " << r;
  }
}

}  // namespace
}  // namespace mm01
