#include "kernels/attention/page_copy.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/check.h"
#include "testing/page_copy_cases.h"

namespace mm01 {
namespace {

TEST(PageCopyTest, PackedIsPageByPageAndPoolByPoolWithin) {
  Queue queue(1);
  Buffer a(3 * 16), b(3 * 32), packed(2 * 48);
  for (int i = 0; i < 48; ++i) a.data()[i] = static_cast<std::byte>(i / 16);
  for (int i = 0; i < 96; ++i) b.data()[i] = static_cast<std::byte>(10 + i / 32);
  const std::vector<PagePool> pools = {{a.data(), 16}, {b.data(), 32}};
  GatherPages(queue, pools, std::vector<int32_t>{2, 0}, packed.data());
  EXPECT_EQ(PackedPageBytes(pools), 48);
  const int wanted[] = {2, 12, 12, 0, 10, 10};  // of each 16 bytes
  for (int i = 0; i < 96; ++i) {
    ASSERT_EQ(static_cast<int>(packed.data()[i]), wanted[i / 16]) << i;
  }
}

TEST(PageCopyTest, GatheredIsWhatPiecesWouldBeAndScatteredBackIsWhatItWas) {
  for (const int threads : {1, 3}) {
    Queue queue(threads);
    for (const PageCopyCase& c : kPageCopyCases) {
      SCOPED_TRACE(c.name);
      PageCopyProblem(queue, c).RunAndCompare();
    }
  }
}

TEST(PageCopyTest, PagesOfAnySizeAndPlaceGoOnACpu) {
  Queue queue(1);
  const std::vector<uint8_t> pool = {1, 2, 3, 4, 5, 6};
  std::vector<uint8_t> packed(7);
  auto* data = reinterpret_cast<std::byte*>(const_cast<uint8_t*>(pool.data()));
  GatherPages(queue, std::vector<PagePool>{{data, 2}, {data, 1}}, std::vector<int32_t>{2, 0},
              reinterpret_cast<std::byte*>(packed.data()) + 1);
  EXPECT_EQ(packed, (std::vector<uint8_t>{0, 5, 6, 3, 1, 2, 1}));
}

TEST(PageCopyTest, APageBeforeTheFirstIsABug) {
  Queue queue(1);
  Buffer pool(32), packed(32);
  EXPECT_THROW(ScatterPages(queue, std::vector<PagePool>{{pool.data(), 32}},
                            std::vector<int32_t>{-1}, packed.data()),
               Bug);
}

}  // namespace
}  // namespace mm01
