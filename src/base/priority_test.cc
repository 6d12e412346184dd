#include "base/priority.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>

namespace mm01 {
namespace {

TEST(PriorityTest, WorkIsDoneElsewhereAndWhatItThrowsComesBack) {
  std::thread::id where = std::this_thread::get_id();
  RunAtLowPriority([&] { where = std::this_thread::get_id(); });
  EXPECT_NE(where, std::this_thread::get_id());
  EXPECT_THROW(RunAtLowPriority([] { throw std::runtime_error("broken"); }), std::runtime_error);
}

}  // namespace
}  // namespace mm01
