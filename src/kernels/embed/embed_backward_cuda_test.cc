// Rows of the embedding and their gradients on a GPU: sums in the order of the rows, to the bit.
#include "kernels/embed/embed_backward_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "testing/arrays.h"
#include "testing/cuda_test.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;
using EmbedBackwardCudaTest = CudaTest;

TEST_F(EmbedBackwardCudaTest, TakesRowsAndAddsTheirGradientsInOrder) {
  struct Case {
    int64_t rows, width, vocabulary;
  };
  for (const auto& [rows, width, vocabulary] :
       {Case{1, 1, 1}, Case{64, 8, 3}, Case{65, 7, 200}, Case{1031, 264, 50}, Case{3, 2056, 9},
        Case{1031, 264, 3}, Case{200, 7, 1}}) {
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < rows; ++t) {
      ids.push_back(static_cast<int32_t>(RandomBits(1, 2, static_cast<uint64_t>(t)) %
                                         static_cast<uint64_t>(vocabulary)));
    }
    const Floats table = RandomBF16s(3, vocabulary * width), d_out = RandomBF16s(4, rows * width);
    const Floats before = RandomFloats(5, vocabulary * width);
    Floats out, want = before;
    std::vector<std::vector<int64_t>> rows_of(static_cast<size_t>(vocabulary));
    for (int64_t t = 0; t < rows; ++t) {
      const int64_t id = ids[static_cast<size_t>(t)];
      rows_of[static_cast<size_t>(id)].push_back(t);
      for (int64_t i = 0; i < width; ++i) {
        out.push_back(table[static_cast<size_t>(id * width + i)]);
      }
    }
    for (int64_t id = 0; id < vocabulary; ++id) {
      const auto& mine = rows_of[static_cast<size_t>(id)];
      for (int64_t i = 0; i < width; ++i) {
        float& sum = want[static_cast<size_t>(id * width + i)];
        for (size_t first = 0; first < mine.size(); first += 64) {
          // All in one sum where there is but one piece.
          float piece = mine.size() > 64 ? 0.0f : sum;
          for (size_t n = first; n < std::min(first + 64, mine.size()); ++n) {
            piece += d_out[static_cast<size_t>(mine[n] * width + i)];
          }
          sum = mine.size() > 64 ? sum + piece : piece;
        }
      }
    }
    for (const DType type : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(ToString(type) + ", " + std::to_string(rows) + " x " + std::to_string(width));
      const CudaTensor weights = Rows(DType::kF32, table, width),
                       taken(queue(), type, {rows, width});
      const CudaTensor gradients = Rows(type, d_out, width),
                       sums = Rows(DType::kF32, before, width);
      cuda::EmbedRows(queue(), ids, weights, taken);
      cuda::EmbedBackward(queue(), ids, gradients, sums);
      EXPECT_TRUE(SameBits(taken.ToFloat(), out));
      EXPECT_TRUE(SameBits(sums.ToFloat(), want));
    }
  }
}

TEST_F(EmbedBackwardCudaTest, NoRowsAndRowsOutsideTheTable) {
  const CudaTensor table = Rows(DType::kF32, {1, 2, 3, 4}, 2), none(queue(), DType::kF32, {0, 2});
  const CudaTensor row(queue(), DType::kF32, {1, 2});
  cuda::EmbedRows(queue(), {}, table, none);
  cuda::EmbedBackward(queue(), {}, none, table);
  EXPECT_TRUE(SameBits(table.ToFloat(), Floats{1, 2, 3, 4}));
  const std::vector<int32_t> outside = {2};
  EXPECT_THROW(cuda::EmbedRows(queue(), outside, table, row), Bug);
}

}  // namespace
}  // namespace mm01
