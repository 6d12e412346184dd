// GatherPages and ScatterPages on a GPU, and the large copies of a queue that they are there for.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "device/device.h"
#include "kernels/attention/page_copy.h"
#include "testing/page_copy_cases.h"

namespace mm01 {
namespace {

class PageCopyCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
  }
};

TEST_F(PageCopyCuda, GatheredIsWhatPiecesWouldBeAndScatteredBackIsWhatItWas) {
  Queue queue(1, Device::kCuda);
  for (const PageCopyCase& c : kPageCopyCases) {
    SCOPED_TRACE(c.name);
    PageCopyProblem(queue, c).RunAndCompare();
  }
}

TEST_F(PageCopyCuda, PiecesThatAreNoVectorsAreBugs) {
  Queue queue(1, Device::kCuda);
  const Buffer pool(256, Device::kCuda), packed(256, Device::kCuda);
  const auto gather = [&](std::byte* data, int64_t bytes, std::byte* out) {
    GatherPages(queue, std::vector<PagePool>{{data, bytes}}, std::vector<int32_t>{0}, out);
  };
  EXPECT_THROW(gather(pool.data(), 24, packed.data()), Bug);
  EXPECT_THROW(gather(pool.data() + 8, 32, packed.data()), Bug);
  EXPECT_THROW(gather(pool.data(), 32, packed.data() + 8), Bug);
}

// `host` is overwritten as soon as a copy returns, as the contract of Queue allows.
TEST_F(PageCopyCuda, CopiesOfAnySizeKeepTheirBytesAndTheirOrder) {
  for (const int threads : {1, 4}) {
    Queue queue(threads, Device::kCuda);
    for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{1} << 20, (int64_t{1} << 21) + 1,
                                (int64_t{1} << 23) - 5, (int64_t{1} << 25) + 12'345}) {
      SCOPED_TRACE(bytes);
      std::vector<uint64_t> host(static_cast<size_t>(bytes / 8 + 1));
      const Buffer a(bytes, Device::kCuda), b(bytes, Device::kCuda);
      for (uint64_t round = 0; round < 3; ++round) {
        const auto value = [&](size_t i) { return i * 0x9E3779B97F4A7C15u + round; };
        for (size_t i = 0; i < host.size(); ++i) host[i] = value(i);
        queue.CopyToDevice(a.data(), host.data(), bytes);
        std::ranges::fill(host, ~uint64_t{0});
        queue.CopyOnDevice(b.data(), a.data(), bytes);
        queue.CopyToDevice(a.data(), host.data(), bytes);
        std::ranges::fill(host, 0);
        queue.CopyToHost(host.data(), b.data(), bytes);
        for (size_t i = 0; i < static_cast<size_t>(bytes / 8); ++i) ASSERT_EQ(host[i], value(i));
        queue.CopyToHost(host.data(), a.data(), bytes);
        for (size_t i = 0; i < static_cast<size_t>(bytes / 8); ++i) ASSERT_EQ(host[i], ~0ull);
      }
    }
  }
}

}  // namespace
}  // namespace mm01
