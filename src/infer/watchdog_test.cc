#include "infer/watchdog.h"

#include <gtest/gtest.h>

#include <future>

namespace mm01::infer {
namespace {

TEST(Watchdog, SaysOnceThatWorkDoesNotEnd) {
  std::promise<void> stuck;
  int calls = 0;
  {
    Watchdog dog(0.01, [&] {
      if (++calls == 1) stuck.set_value();
    });
    dog.Begin();
    stuck.get_future().wait();
    dog.End();
  }
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace mm01::infer
