// Rotary positions on a GPU against long double, up to position 10,000,000.
#include <gtest/gtest.h>

#include <cmath>
#include <iterator>
#include <memory>
#include <vector>

#include "device/device.h"
#include "kernels/rope/rope.h"
#include "kernels/rope/rope_cases.h"
#include "kernels/rope/rope_ref.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;
const std::vector<int64_t> kPositions(std::begin(kRopePositions), std::end(kRopePositions));

class RopeCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }

  struct Table {
    CudaTensor cos, sin;
  };
  Table MakeTable(const std::vector<int64_t>& position, double theta, int64_t rotary) {
    const int64_t rows = std::ssize(position);
    Table t{CudaTensor(queue(), DType::kF32, {rows, rotary / 2}),
            CudaTensor(queue(), DType::kF32, {rows, rotary / 2})};
    RopeTable(queue(), CudaTensor::Int64(queue(), position), theta, t.cos, t.sin);
    return t;
  }

 private:
  std::unique_ptr<Queue> queue_;
};

TEST_F(RopeCudaTest, AnglesAreAsAccurateAtTenMillionAsAtTen) {
  std::vector<RopeCase> cases(std::begin(kRopeCases), std::end(kRopeCases));
  cases.push_back({"more frequencies than a launch takes", 1, 512, 300, 1e7});
  for (const RopeCase& c : cases) {
    SCOPED_TRACE(c.name);
    const Table table = MakeTable(kPositions, c.theta, c.rotary);
    const Floats cos = table.cos.ToFloat(), sin = table.sin.ToFloat();
    for (size_t r = 0; r < kPositions.size(); ++r) {
      for (int64_t j = 0; j < c.rotary / 2; ++j) {
        const long double angle = ReferenceAngle(kPositions[r], c.theta, j, c.rotary);
        const size_t at = r * static_cast<size_t>(c.rotary / 2) + static_cast<size_t>(j);
        // Half a unit in the last place of a number below 1.
        EXPECT_NEAR(cos[at], std::cos(angle), 3.1e-8) << kPositions[r];
        EXPECT_NEAR(sin[at], std::sin(angle), 3.1e-8) << kPositions[r];
      }
    }
  }
}

TEST_F(RopeCudaTest, AgreesWithTheDoubleReference) {
  for (const RopeCase& c : kRopeCases) {
    const int64_t rows = std::ssize(kPositions);
    const Table table = MakeTable(kPositions, c.theta, c.rotary);
    const Floats x = RandomBF16s(1, rows * c.heads * c.dim);
    std::vector<double> want;
    for (int64_t i = 0; i < rows * c.heads; ++i) {
      const auto head = ReferenceRope(std::span(x).subspan(i * c.dim, c.dim),
                                      kPositions[i / c.heads], c.theta, c.rotary);
      want.insert(want.end(), head.begin(), head.end());
    }
    for (const DType type : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(c.name + (", " + ToString(type)));
      const CudaTensor heads(queue(), type, {rows, c.heads, c.dim}, x);
      Rope(queue(), heads, table.cos, table.sin);
      EXPECT_LE(RelativeError(heads.ToFloat(), want), type == DType::kF32 ? 1e-6 : 2e-3);
    }
  }
}

TEST_F(RopeCudaTest, HeadsMayBePartsOfAFusedProjection) {
  // q and k of rows [q 2 heads, k 1 head, v 1 head]; v must stay as it is.
  for (const int64_t rotary : {16, 6}) {
    constexpr int64_t kDim = 16, kRows = 5;
    const Floats x = RandomBF16s(2, kRows * 4 * kDim);
    const Table table = MakeTable({7, 8, 9, 10, 11}, 1e4, rotary);
    const CudaTensor fused(queue(), DType::kBF16, {kRows, 4 * kDim}, x);
    const CudaTensor plain(queue(), DType::kBF16, {kRows, 4, kDim}, x);
    for (const auto& [first, heads] : {std::pair<int64_t, int64_t>{0, 2}, {2, 1}}) {
      Tensor part(DType::kBF16, static_cast<bf16*>(fused.tensor().data) + first * kDim,
                  {kRows, heads, kDim});
      part.stride[0] = 4 * kDim;
      Rope(queue(), part, table.cos, table.sin);
    }
    Rope(queue(), plain, table.cos, table.sin);
    const Floats got = fused.ToFloat(), turned = plain.ToFloat();
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(got[i], i / kDim % 4 == 3 ? x[i] : turned[i]);
    }
  }
}

TEST_F(RopeCudaTest, NoRowsAreNoWork) {
  const Table table = MakeTable({}, 1e4, 16);
  const CudaTensor none(queue(), DType::kBF16, {0, 2, 16});
  Rope(queue(), none, table.cos, table.sin);
}

}  // namespace
}  // namespace mm01
