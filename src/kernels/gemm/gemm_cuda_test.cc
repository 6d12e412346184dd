// Gemm on a GPU against the double reference, and the bits that it promises.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/device.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_cases.h"
#include "kernels/gemm/gemm_ref.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

constexpr double kFloat32 = 1e-5;  // limits of the relative error
constexpr double kBF16 = 2e-3;

// Rounding to bf16 is off by 1.7e-3 over many numbers, and by up to 2^-8 in one.
double RoundingLimit(size_t count) {
  return count < 1000 ? 4e-3 : kBF16;
}

std::string Name(const WeightType& type) {
  return ToString(type.dtype) + (type.group ? "/" + std::to_string(type.group) : "");
}

// A weight on the GPU, and what it stands for.
struct Pair {
  Weight w;
  Floats values;
};

Pair RandomWeight(Queue& queue, WeightType type, int64_t n, int64_t k, uint64_t stream = 77) {
  const Floats random = RandomFloats(stream, n * k);
  Weight staging = Weight::Staging(type, n, k);
  Pair p{Weight(type, n, k, Device::kCuda), Floats(random.size())};
  for (int64_t i = 0; i < n; ++i) {
    staging.SetRow(i, std::span(random).subspan(i * k, k));
    staging.GetRow(i, std::span(p.values).subspan(i * k, k));
  }
  p.w.CopyRows(queue, 0, staging, n);
  return p;
}

Floats RowsOf(const Floats& x, int64_t begin, int64_t end, int64_t width) {
  return {x.begin() + begin * width, x.begin() + end * width};
}

class GemmCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }

  Floats Product(const Floats& x, int64_t m, const Weight& w, DType in, DType out_type,
                 Activation activation = Activation::kNone) {
    const CudaTensor given(queue(), in, {m, w.k()}, x), out(queue(), out_type, {m, w.n()});
    Gemm(queue(), {given, &w, out, activation});
    return out.ToFloat();
  }

 private:
  std::unique_ptr<Queue> queue_;
};

TEST_F(GemmCudaTest, Float32AgreesWithTheDoubleReference) {
  for (const GemmCase& c : kGemmCases) {
    const Floats x = RandomFloats(1, c.m * c.k);
    for (const WeightType& type : kWeightTypes) {
      SCOPED_TRACE(c.name + (", " + Name(type)));
      const Pair p = RandomWeight(queue(), type, c.n, c.k);
      const auto want = ReferenceGemm(x, p.values, c.m, c.n, c.k);
      EXPECT_LE(RelativeError(Product(x, c.m, p.w, DType::kF32, DType::kF32), want), kFloat32);
    }
  }
}

TEST_F(GemmCudaTest, ManyRowsOfFloat32AgreeWithTheDoubleReference) {
  constexpr int64_t kM = 300, kN = 264, kK = 512;
  const Floats x = RandomFloats(2, kM * kK);
  const Pair p = RandomWeight(queue(), {}, kN, kK);
  const auto want = ReferenceGemm(x, p.values, kM, kN, kK);
  EXPECT_LE(RelativeError(Product(x, kM, p.w, DType::kF32, DType::kF32), want), kFloat32);
}

TEST_F(GemmCudaTest, BF16AgreesWithTheDoubleReference) {
  const struct {
    int64_t n, k;
  } shapes[] = {{200, 512}, {48, 136},  {130, 1040}, {257, 64},
                {1, 2048},  {32, 6144}, {40, 77},    {64, 16}};
  constexpr int64_t kMost = 300;
  for (const auto& shape : shapes) {
    const Floats x = RandomBF16s(3, kMost * shape.k);
    for (const WeightType& type : kWeightTypes) {
      const Pair p = RandomWeight(queue(), type, shape.n, shape.k);
      const auto want = ReferenceGemm(x, p.values, kMost, shape.n, shape.k);
      for (const int64_t m : {1, 2, 7, 8, 9, 16, 17, 31, 33, 64, 65, 127, 128, 129, 300}) {
        SCOPED_TRACE(Name(type) + ", " + std::to_string(m) + " x " + std::to_string(shape.n) +
                     " x " + std::to_string(shape.k));
        const Floats rows = RowsOf(x, 0, m, shape.k);
        const std::vector<double> part(want.begin(), want.begin() + m * shape.n);
        // Many rows round an int8 weight to bf16.
        const bool rounds = type.dtype == DType::kI8 && m > kFewRows;
        EXPECT_LE(RelativeError(Product(rows, m, p.w, DType::kBF16, DType::kF32), part),
                  rounds ? kBF16 : kFloat32);
        EXPECT_LE(RelativeError(Product(rows, m, p.w, DType::kBF16, DType::kBF16), part),
                  rounds ? 2 * kBF16 : RoundingLimit(part.size()));
      }
    }
  }
}

// More inputs than Text-01 has leave less of the kernel's memory to each row. The tensor cores cut
// sums off instead of rounding them, so the error grows with the number of inputs.
TEST_F(GemmCudaTest, RowsMayHaveManyInputs) {
  constexpr int64_t kMost = 70, kN = 70;
  for (const int64_t k : {12'288, 32'768, 50'048}) {
    const Floats x = RandomBF16s(12, kMost * k);
    for (const WeightType& type :
         {WeightType{DType::kBF16}, WeightType{DType::kI8, 32}, WeightType{DType::kI8, 128}}) {
      const Pair p = RandomWeight(queue(), type, kN, k);
      const auto want = ReferenceGemm(x, p.values, kMost, kN, k);
      const Floats all = Product(x, kMost, p.w, DType::kBF16, DType::kF32);
      EXPECT_LE(RelativeError(all, want), 4 * kFloat32) << Name(type) << ", " << k;
      const Floats fewest =
          Product(RowsOf(x, 0, kFewestRows, k), kFewestRows, p.w, DType::kBF16, DType::kF32);
      EXPECT_LE(RelativeError(fewest, std::span(want).first(kFewestRows * kN)), 4 * kFloat32)
          << Name(type) << ", " << k;
      for (const int64_t m : {1, 9, 20, 65}) {
        EXPECT_TRUE(SameBits(Product(RowsOf(x, 0, m, k), m, p.w, DType::kBF16, DType::kF32),
                             RowsOf(m <= kFewestRows ? fewest : all, 0, m, kN)))
            << Name(type) << ", " << m << " x " << k;
      }
    }
  }
}

TEST_F(GemmCudaTest, ARowHasTheSameBitsForEveryNumberOfRowsInItsRange) {
  constexpr int64_t kMost = 1000;
  // The last has more tiles of rows than a GPU has multiprocessors.
  const struct {
    int64_t n, k;
  } shapes[] = {{136, 1544}, {200, 1552}, {264, 2048}, {24, 96}, {5000, 2320}};
  for (const auto& shape : shapes) {
    const Floats x = RandomBF16s(4, kMost * shape.k);
    for (const WeightType& type : kWeightTypes) {
      if (type.dtype == DType::kF32) continue;
      SCOPED_TRACE(Name(type) + ", K " + std::to_string(shape.k));
      const Pair p = RandomWeight(queue(), type, shape.n, shape.k);
      const auto product = [&](int64_t begin, int64_t end) {
        return Product(RowsOf(x, begin, end, shape.k), end - begin, p.w, DType::kBF16, DType::kF32);
      };
      const Floats few = product(0, kFewRows), many = product(0, kMost);
      for (const int64_t m : {1, 2, 3, 8, 9, 15, 16, 17, 30, 33, 63, 64, 65, 100}) {
        if (type.dtype == DType::kI8 && m <= kFewestRows) continue;
        const int64_t first = std::min<int64_t>(m, kFewRows - m);
        EXPECT_TRUE(SameBits(product(first, first + m), RowsOf(few, first, first + m, shape.n)))
            << m << " rows";
      }
      const Floats fewest = product(0, kFewestRows);
      for (const int64_t m : {1, 2, 3, 7, 8, 9, 15}) {
        const int64_t first = std::min<int64_t>(m, kFewestRows - m);
        EXPECT_TRUE(SameBits(product(first, first + m), RowsOf(fewest, first, first + m, shape.n)))
            << m << " rows";
      }
      for (const int64_t m : {129, 192, 256, 500, 777}) {
        const int64_t first = kMost - m;
        EXPECT_TRUE(SameBits(product(first, kMost), RowsOf(many, first, kMost, shape.n)))
            << m << " rows";
      }
    }
  }
}

TEST_F(GemmCudaTest, ARowOfFloat32HasTheSameBitsForEveryNumberOfRowsOnItsSide) {
  constexpr int64_t kMost = 700, kN = 72, kK = 300;
  const Floats x = RandomFloats(5, kMost * kK);
  const Pair p = RandomWeight(queue(), {}, kN, kK);
  const auto product = [&](int64_t begin, int64_t end) {
    return Product(RowsOf(x, begin, end, kK), end - begin, p.w, DType::kF32, DType::kF32);
  };
  const Floats few = product(0, kFewRows), many = product(0, kMost);
  for (const int64_t m : {1, 3, 4, 5, 64}) {
    EXPECT_TRUE(SameBits(product(2, 2 + m), RowsOf(few, 2, 2 + m, kN))) << m << " rows";
  }
  for (const int64_t m : {129, 256, 333}) {
    EXPECT_TRUE(SameBits(product(2, 2 + m), RowsOf(many, 2, 2 + m, kN))) << m << " rows";
  }
}

TEST_F(GemmCudaTest, ManyAtOnceEqualOneByOne) {
  constexpr int64_t kK = 512;
  for (const WeightType& type : {WeightType{DType::kBF16}, WeightType{DType::kI8, 128}}) {
    for (const int64_t m : {1, 5, 40, 128, 200}) {
      SCOPED_TRACE(Name(type) + ", " + std::to_string(m) + " rows");
      const Floats x = RandomBF16s(6, m * kK);
      const CudaTensor given(queue(), DType::kBF16, {m, kK}, x);
      std::vector<Pair> weights;
      std::vector<CudaTensor> outs;
      std::vector<GemmArgs> args;
      const int64_t widths[] = {136, 8, 384, 16, 200, 24};
      for (size_t i = 0; i < std::size(widths); ++i) {
        weights.push_back(RandomWeight(queue(), type, widths[i], kK, i));
        outs.emplace_back(queue(), i % 2 ? DType::kF32 : DType::kBF16,
                          std::vector<int64_t>{m, widths[i]});
      }
      for (size_t i = 0; i < std::size(widths); ++i) {
        args.push_back(
            {given, &weights[i].w, outs[i], i == 2 ? Activation::kSilu : Activation::kNone});
      }
      GemmMany(queue(), args);
      for (size_t i = 0; i < std::size(widths); ++i) {
        EXPECT_TRUE(SameBits(
            outs[i].ToFloat(),
            Product(x, m, weights[i].w, DType::kBF16, outs[i].tensor().dtype, args[i].activation)))
            << "problem " << i;
      }
    }
  }
}

TEST_F(GemmCudaTest, SiluIsAppliedToTheSum) {
  constexpr int64_t kN = 80, kK = 256;
  for (const DType in : {DType::kF32, DType::kBF16}) {
    const Pair p = RandomWeight(queue(), {in}, kN, kK);
    for (const int64_t m : {1, 20, 100, 200}) {
      SCOPED_TRACE(ToString(in) + ", " + std::to_string(m) + " rows");
      Floats x = RandomBF16s(7, m * kK);
      for (float& v : x) v /= 16;
      auto want = ReferenceGemm(x, p.values, m, kN, kK);
      for (double& v : want) v /= 1.0 + std::exp(-v);
      const Floats got = Product(x, m, p.w, in, DType::kF32, Activation::kSilu);
      EXPECT_LE(RelativeError(got, want), kFloat32);
    }
  }
}

TEST_F(GemmCudaTest, RowsMayBeStridedAndWhatLiesBetweenThemIsLeftAlone) {
  constexpr int64_t kK = 64, kN = 40, kWideX = 104, kWideOut = 72;
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const Pair p = RandomWeight(queue(), {type}, kN, kK);
    for (const int64_t m : {1, 14, 40, 150}) {
      SCOPED_TRACE(ToString(type) + ", " + std::to_string(m) + " rows");
      const Floats wide = RandomBF16s(8, m * kWideX);
      const CudaTensor x(queue(), type, {m, kWideX}, wide);
      const CudaTensor out(queue(), DType::kF32, {m, kWideOut});
      Tensor part_x = x, part_out = out;
      part_x.data = static_cast<std::byte*>(part_x.data) + 16 * SizeOf(type);
      part_x.shape[1] = kK;
      part_out.data = static_cast<float*>(part_out.data) + 16;
      part_out.shape[1] = kN;
      Gemm(queue(), {part_x, &p.w, part_out});
      const Floats got = out.ToFloat();
      Floats rows, results;
      int64_t untouched = 0;
      for (int64_t r = 0; r < m; ++r) {
        const auto first = wide.begin() + r * kWideX + 16;
        rows.insert(rows.end(), first, first + kK);
        const auto result = got.begin() + r * kWideOut + 16;
        results.insert(results.end(), result, result + kN);
      }
      for (const float v : got) untouched += std::isnan(v);
      EXPECT_TRUE(SameBits(results, Product(rows, m, p.w, type, DType::kF32)));
      EXPECT_EQ(untouched, m * (kWideOut - kN));
    }
  }
}

// The scales of all but the first begin at odd multiples of their size.
TEST_F(GemmCudaTest, AWeightOfAStackIsLikeOneByItself) {
  constexpr int64_t kCount = 4, kN = 5, kK = 272;
  const WeightType type{DType::kI8, 128};
  std::vector<Weight> stack = Weight::Stack(kCount, type, kN, kK, Device::kCuda);
  const Floats x = RandomBF16s(13, kFewRows * kK);
  for (int64_t i = 0; i < kCount; ++i) {
    const Floats random = RandomFloats(i, kN * kK);
    Weight staging = Weight::Staging(type, kN, kK), alone(type, kN, kK, Device::kCuda);
    for (int64_t n = 0; n < kN; ++n) staging.SetRow(n, std::span(random).subspan(n * kK, kK));
    for (Weight* w : {&stack[i], &alone}) w->CopyRows(queue(), 0, staging, kN);
    for (const int64_t m : {int64_t{1}, kFewestRows, kFewRows}) {
      const Floats rows = RowsOf(x, 0, m, kK);
      EXPECT_TRUE(SameBits(Product(rows, m, stack[i], DType::kBF16, DType::kF32),
                           Product(rows, m, alone, DType::kBF16, DType::kF32)))
          << "weight " << i << ", " << m << " rows";
    }
  }
}

TEST_F(GemmCudaTest, NoRowsAreNoWork) {
  const Pair p = RandomWeight(queue(), {DType::kBF16}, 8, 8);
  EXPECT_TRUE(Product({}, 0, p.w, DType::kBF16, DType::kF32).empty());
  GemmMany(queue(), {});
}

// Element (n, k) of the last rows stands beyond 2^31.
TEST_F(GemmCudaTest, WeightsMayHoldMoreThanTwoToThe31Numbers) {
  constexpr int64_t kN = 400'000, kK = 6144, kLast = 40;
  const WeightType type{DType::kI8, 128};
  const Floats random = RandomFloats(9, kLast * kK);
  Weight staging = Weight::Staging(type, kLast, kK), w(type, kN, kK, Device::kCuda);
  Floats values(random.size());
  for (int64_t i = 0; i < kLast; ++i) {
    staging.SetRow(i, std::span(random).subspan(i * kK, kK));
    staging.GetRow(i, std::span(values).subspan(i * kK, kK));
  }
  w.CopyRows(queue(), kN - kLast, staging, kLast);
  for (const int64_t m : {3, 20, 130}) {
    const Floats x = RandomBF16s(10, m * kK);
    const Floats got = Product(x, m, w, DType::kBF16, DType::kF32);
    Floats last;
    double rest = 0;
    for (int64_t r = 0; r < m; ++r) {
      const auto end = got.begin() + (r + 1) * kN;
      last.insert(last.end(), end - kLast, end);
      for (auto v = end - kN; v != end - kLast; ++v) rest = std::max(rest, std::abs(double{*v}));
    }
    EXPECT_LE(RelativeError(last, ReferenceGemm(x, values, m, kLast, kK)),
              m > kFewRows ? kBF16 : kFloat32);
    EXPECT_EQ(rest, 0);
  }
}

TEST_F(GemmCudaTest, ShapesThatDisagreeAreABug) {
  const Pair p = RandomWeight(queue(), {DType::kBF16}, 3, 8);
  const CudaTensor x(queue(), DType::kBF16, {2, 8}), out(queue(), DType::kF32, {2, 3});
  const CudaTensor narrow(queue(), DType::kBF16, {2, 7}), tall(queue(), DType::kF32, {3, 3});
  const CudaTensor ids(queue(), DType::kI32, {2, 3});
  EXPECT_THROW(Gemm(queue(), {narrow, &p.w, out}), Bug);
  EXPECT_THROW(Gemm(queue(), {x, &p.w, tall}), Bug);
  EXPECT_THROW(Gemm(queue(), {x, &p.w, ids}), Bug);
}

}  // namespace
}  // namespace mm01
