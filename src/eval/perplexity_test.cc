#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <map>
#include <memory>
#include <vector>

#include "infer/session.h"
#include "testing/tiny_model.h"

namespace mm01::eval {
namespace {

using Document = std::vector<int32_t>;

class PerplexityTest : public testing::Test {
 protected:
  PerplexityTest() { WriteTinyModel(folder_.path(), TinyConfig()); }

  std::unique_ptr<infer::Engine> Load(int64_t prefill_rows = 512) {
    return infer::Engine::Load(
               folder_.path(),
               {.num_threads = 2, .context_tokens = 256, .prefill_rows = prefill_rows})
        .value();
  }

  // Token by token: -log of the softmax, in double.
  std::vector<double> NatsByHand(const Document& tokens) {
    const auto engine = Load();
    infer::Session session = infer::Session::Open(*engine).value();
    std::vector<double> nats;
    for (const int32_t id : tokens) {
      if (session.length() > 0) {
        double sum = 0.0;
        for (const float x : session.logits()) sum += std::exp(static_cast<double>(x));
        nats.push_back(std::log(sum) -
                       static_cast<double>(session.logits()[static_cast<size_t>(id)]));
      }
      Check(session.Read({&id, 1}).ok(), "the text fits");
    }
    return nats;
  }

  TempFolder folder_;
};

TEST_F(PerplexityTest, EqualsTheSumOverTokensReadOneByOne) {
  const std::vector<Document> documents = {TinyTokens(150), TinyTokens(33, 96, 2)};
  double sum = 0.0;
  std::map<int64_t, double> by_begin;  // of each bucket
  for (const Document& d : documents) {
    const std::vector<double> nats = NatsByHand(d);
    for (size_t i = 0; i < nats.size(); ++i) {
      sum += nats[i];
      by_begin[static_cast<int64_t>(std::bit_floor(i + 1))] += nats[i];
    }
  }
  const auto engine = Load();
  const Result<Perplexity> p = MeasurePerplexity(*engine, documents);
  ASSERT_TRUE(p.ok()) << p.status().message();
  EXPECT_EQ(p->num_documents, 2);
  EXPECT_EQ(p->num_tokens, 149 + 32);
  EXPECT_NEAR(p->nats, sum, 1e-9 * sum);
  EXPECT_NEAR(p->nats_per_token(), sum / 181, 1e-9 * sum);
  ASSERT_EQ(p->buckets.size(), by_begin.size());
  for (const PositionBucket& b : p->buckets) {
    EXPECT_EQ(b.end, 2 * b.begin);
    EXPECT_NEAR(b.nats, by_begin.at(b.begin), 1e-9 * sum) << b.begin;
  }
  EXPECT_EQ(p->buckets.back().begin, 128);
  EXPECT_EQ(p->buckets.back().num_tokens, 150 - 128);
}

TEST_F(PerplexityTest, StepsAndThreadsDoNotShow) {
  const std::vector<Document> documents = {TinyTokens(150)};
  const double want = MeasurePerplexity(*Load(), documents)->nats;
  for (const int64_t rows : {1, 7, 64, 100}) {
    EXPECT_EQ(MeasurePerplexity(*Load(rows), documents)->nats, want) << rows;
  }
}

TEST_F(PerplexityTest, DocumentsTooShortToPredictCountNothing) {
  const auto engine = Load();
  const std::vector<Document> documents = {{}, {5}, {5, 6}};
  const Result<Perplexity> p = MeasurePerplexity(*engine, documents);
  ASSERT_TRUE(p.ok());
  EXPECT_EQ(p->num_documents, 3);
  EXPECT_EQ(p->num_tokens, 1);
  ASSERT_EQ(p->buckets.size(), 1u);
  EXPECT_EQ(p->buckets[0].begin, 1);
  EXPECT_EQ(MeasurePerplexity(*engine, {})->nats_per_token(), 0.0);
}

TEST_F(PerplexityTest, TokensOutsideTheVocabularyAndLongDocumentsAreErrors) {
  const auto engine = Load();
  const std::vector<Document> stranger = {{1, 2}, {3, 96}};
  const Status status = MeasurePerplexity(*engine, stranger).status();
  EXPECT_EQ(status.code(), Code::kInvalid);
  EXPECT_EQ(status.message(), "document 1 has token 96, wanted 0 to 95");
  const std::vector<Document> too_long = {TinyTokens(1000)};
  EXPECT_EQ(MeasurePerplexity(*engine, too_long).status().code(), Code::kTooLarge);
  EXPECT_TRUE(infer::Session::Open(*engine).ok()) << "the slots are free again";
}

TEST_F(PerplexityTest, TheCallerMayStop) {
  const auto engine = Load(64);
  const std::vector<Document> documents = {TinyTokens(150)};
  const Status status = MeasurePerplexity(*engine, documents, [](int64_t done, int64_t total) {
                          EXPECT_EQ(total, 150);
                          return done < 128;
                        }).status();
  EXPECT_EQ(status.code(), Code::kCancelled);
  EXPECT_EQ(status.message(), "stopped after 128 of 150 tokens");
  EXPECT_TRUE(infer::Session::Open(*engine).ok());
}

}  // namespace
}  // namespace mm01::eval
