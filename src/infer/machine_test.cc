#include "infer/machine.h"

#include <gtest/gtest.h>

#include <vector>

namespace mm01::infer {
namespace {

TEST(MachineTest, HasACoreAndSomeMemory) {
  EXPECT_GE(AvailableCores(), 1);
  EXPECT_GT(AvailableMemoryBytes(), 0);
}

TEST(MachineTest, ThePeakCountsWhatWasTouched) {
  const int64_t size = PeakResidentBytes() + (16 << 20);
  const std::vector<char> touched(static_cast<size_t>(size), 1);
  EXPECT_GE(PeakResidentBytes(), size) << touched.back();
}

}  // namespace
}  // namespace mm01::infer
