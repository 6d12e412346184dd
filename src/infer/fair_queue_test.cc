#include "infer/fair_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "testing/tiny_model.h"

namespace mm01::infer {
namespace {

class FairQueueTest : public testing::Test {
 protected:
  FairQueueTest() {
    TextConfig config = TinyConfig();
    config.layers = {LayerKind::kLightning};
    WriteTinyModel(folder_.path(), config);
    engine_ =
        Engine::Load(folder_.path(),
                     {.num_threads = 1, .context_tokens = 64, .memory_limit_bytes = 1ll << 30})
            .value();
  }

  void Push(char name, const char* salt, double cost = 1, int priority = 0) {
    Request request;
    request.prompt = {1};
    request.salt = salt;
    request.priority = priority;
    queue_.Push(std::make_unique<Sequence>(static_cast<Service::Id>(name), std::move(request),
                                           nullptr, *engine_, "model"),
                cost);
  }
  static bool Always(Sequence&) { return true; }
  std::string TakeAll() {
    std::string names;
    while (const auto s = queue_.Take(Always)) names += static_cast<char>(s->id);
    return names;
  }

  TempFolder folder_;
  std::unique_ptr<Engine> engine_;
  FairQueue queue_;
};

TEST_F(FairQueueTest, OneSaltIsServedInOrderOfArrival) {
  for (const char name : {'a', 'b', 'c', 'd'}) Push(name, "x", name == 'b' ? 100 : 1);
  EXPECT_EQ(TakeAll(), "abcd");
}

TEST_F(FairQueueTest, SaltsTakeTurnsByCost) {
  for (const char name : {'a', 'b', 'c', 'd'}) Push(name, "x", 10);
  for (const char name : {'p', 'q', 'r'}) Push(name, "y", 20);
  EXPECT_EQ(TakeAll(), "apbcqdr") << "for each of y two of x";
}

TEST_F(FairQueueTest, WhoComesLateDoesNotGetWhatItDidNotAskFor) {
  for (const char name : {'a', 'b', 'c', 'd'}) Push(name, "x");
  ASSERT_EQ(queue_.Take(Always)->id, 'a');
  ASSERT_EQ(queue_.Take(Always)->id, 'b');
  for (const char name : {'p', 'q', 'r'}) Push(name, "y");
  EXPECT_EQ(TakeAll(), "pcqdr") << "turns begin now, not with a";
}

TEST_F(FairQueueTest, PriorityGoesFirstAndHasTurnsOfItsOwn) {
  Push('a', "x");
  Push('b', "x");
  Push('P', "x", 100, 5);
  Push('n', "x", 1, -1);
  ASSERT_EQ(queue_.Take(Always)->id, 'P');
  Push('q', "y");
  EXPECT_EQ(TakeAll(), "aqbn");
}

TEST_F(FairQueueTest, WhoIsNotReadyIsPassed) {
  for (const char name : {'a', 'b', 'c'}) Push(name, "x");
  EXPECT_EQ(queue_.Take([](Sequence& s) { return s.id == 'b'; })->id, 'b');
  EXPECT_EQ(queue_.Take([](Sequence& s) { return s.id == 'b'; }), nullptr);
  EXPECT_EQ(queue_.TakeId('c')->id, 'c');
  EXPECT_EQ(queue_.TakeId('c'), nullptr);
  EXPECT_EQ(queue_.size(), 1);
  EXPECT_EQ(TakeAll(), "a");
}

}  // namespace
}  // namespace mm01::infer
