#include "infer/session.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "testing/arrays.h"
#include "testing/tiny_model.h"

namespace mm01::infer {
namespace {

std::vector<float> Copy(std::span<const float> x) {
  return {x.begin(), x.end()};
}

class SessionTest : public testing::Test {
 protected:
  SessionTest() { WriteTinyModel(folder_.path(), TinyConfig()); }

  std::unique_ptr<Engine> Load(int64_t context = 256, int64_t sequences = 1, int64_t rows = 512) {
    Result<std::unique_ptr<Engine>> engine =
        Engine::Load(folder_.path(), {.num_threads = 1,
                                      .context_tokens = context,
                                      .num_sequences = sequences,
                                      .prefill_rows = rows});
    Check(engine.ok(), engine.status().message());
    return std::move(*engine);
  }

  TempFolder folder_;
};

TEST_F(SessionTest, ATokenOutsideTheVocabularyIsNamedAndNothingIsRead) {
  const auto engine = Load();
  Session session = Session::Open(*engine).value();
  for (const int32_t bad : {96, -1}) {
    const Status status = session.Read(std::vector<int32_t>{1, 2, bad});
    EXPECT_EQ(status.code(), Code::kInvalid);
    EXPECT_EQ(status.message(),
              "token 2 of the input is " + std::to_string(bad) + ", wanted 0 to 95");
  }
  EXPECT_EQ(session.length(), 0);
  EXPECT_TRUE(session.logits().empty());
}

TEST_F(SessionTest, ATextThatDoesNotFitIsRefusedWholeAndAShorterOneStillFits) {
  const auto engine = Load(64);
  Session session = Session::Open(*engine).value();
  const Status status = session.Read(TinyTokens(1000));
  EXPECT_EQ(status.code(), Code::kTooLarge);
  EXPECT_NE(status.message().find("1000 tokens"), std::string::npos) << status.message();
  EXPECT_EQ(session.length(), 0);
  EXPECT_TRUE(session.Read(TinyTokens(64)).ok());
}

TEST_F(SessionTest, ARewoundSessionGoesOnAsIfNothingHadBeenReadSince) {
  const auto engine = Load(512, 2);
  const std::vector<int32_t> tokens = TinyTokens(300);
  for (const int64_t length : {40, 64, 150}) {
    Session session = Session::Open(*engine).value();
    ASSERT_TRUE(session.Read(std::span(tokens).first(static_cast<size_t>(length))).ok());
    const Session::Mark mark = session.MarkBorder();
    EXPECT_EQ(mark.length, length / 64 * 64);
    ASSERT_TRUE(session.Read(std::span(tokens).last(130)).ok());
    session.Rewind(mark);
    EXPECT_EQ(session.length(), mark.length);
    EXPECT_TRUE(session.logits().empty());
    const auto rest = std::span(tokens).subspan(static_cast<size_t>(mark.length), 100);
    ASSERT_TRUE(session.Read(rest).ok());

    Session fresh = Session::Open(*engine).value();
    ASSERT_TRUE(fresh.Read(std::span(tokens).first(static_cast<size_t>(mark.length) + 100)).ok());
    EXPECT_EQ(session.tokens(), fresh.tokens());
    EXPECT_EQ(Copy(session.logits()), Copy(fresh.logits()));
  }
}

TEST_F(SessionTest, NoTokensAreNoWork) {
  const auto engine = Load();
  Session session = Session::Open(*engine).value();
  EXPECT_TRUE(session.Read({}).ok());
  EXPECT_TRUE(session.logits().empty());
}

TEST_F(SessionTest, StepsEndOnTheGrid) {
  const auto engine = Load(512, 1, 100);
  Session session = Session::Open(*engine).value();
  std::vector<int64_t> ends;
  ASSERT_TRUE(session
                  .Read(TinyTokens(300),
                        [&](int64_t done, int64_t total) {
                          EXPECT_EQ(total, 300);
                          ends.push_back(done);
                          return true;
                        })
                  .ok());
  EXPECT_EQ(ends, (std::vector<int64_t>{64, 128, 192, 256, 300}));
}

TEST_F(SessionTest, WhatWasReadBeforeAStopStaysRead) {
  const auto engine = Load(512, 2, 64);
  const std::vector<int32_t> ids = TinyTokens(300);
  Session stopped = Session::Open(*engine).value();
  const Status status = stopped.Read(ids, [](int64_t done, int64_t) { return done < 128; });
  EXPECT_EQ(status.code(), Code::kCancelled);
  EXPECT_EQ(status.message(), "stopped after 128 of 300 tokens");
  ASSERT_EQ(stopped.length(), 128);
  ASSERT_TRUE(stopped.Read(std::span(ids).subspan(128)).ok());

  Session straight = Session::Open(*engine).value();
  ASSERT_TRUE(straight.Read(ids).ok());
  EXPECT_TRUE(SameBits(Copy(stopped.logits()), Copy(straight.logits())));
  EXPECT_EQ(stopped.tokens(), ids);
}

TEST_F(SessionTest, ASlotComesBackWhenItsSessionGoes) {
  const auto engine = Load();
  {
    Session first = Session::Open(*engine).value();
    EXPECT_EQ(Session::Open(*engine).status().code(), Code::kTooLarge);
    const Session moved = std::move(first);
    EXPECT_EQ(Session::Open(*engine).status().code(), Code::kTooLarge);
  }
  EXPECT_TRUE(Session::Open(*engine).ok());
}

TEST_F(SessionTest, ASecondSessionFindsNothingOfTheFirst) {
  const auto engine = Load();
  const std::vector<int32_t> ids = TinyTokens(70);
  std::vector<float> first;
  {
    Session session = Session::Open(*engine).value();
    ASSERT_TRUE(session.Read(ids).ok());
    first = Copy(session.logits());
    ASSERT_TRUE(session.Read(TinyTokens(90, 96, 2)).ok());
  }
  Session session = Session::Open(*engine).value();
  ASSERT_TRUE(session.Read(ids).ok());
  EXPECT_TRUE(SameBits(Copy(session.logits()), first));
}

}  // namespace
}  // namespace mm01::infer
