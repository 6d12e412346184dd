// The mixture of experts on a GPU against its formula, on each of its paths.
#include "kernels/moe/moe_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "kernels/moe/moe_cases.h"
#include "kernels/moe/moe_ref.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

constexpr WeightType kF32Weights{DType::kF32, 0};
constexpr WeightType kBF16Weights{DType::kBF16, 0};

class MoeCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto cuda = FindCuda(); !cuda.ok()) GTEST_SKIP() << cuda.status().message();
  }
};

Floats Random(uint64_t stream, int64_t n, double scale) {
  Floats x = RandomFloats(stream, n);
  for (float& v : x) v = static_cast<float>(v * scale);
  return x;
}

// Experts on the GPU, and what their weights stand for.
struct Mixture {
  int64_t num_experts, width, inner;
  std::vector<Floats> w1, w2, w3;
  std::vector<ExpertWeights> experts;
  Floats router_values;
  Weight router;

  Mixture(Queue& queue, int64_t e, int64_t d, int64_t f, WeightType type, double skew = 0.0)
      : num_experts(e), width(d), inner(f), router_values(Random(99, e * d, 1.0)) {
    // A router that likes the first experts more, whatever the token: column 0 of x is 1.
    for (int64_t i = 0; i < e; ++i) router_values[i * d] = static_cast<float>(-skew * i);
    auto stack1 = Put(queue, type, f, d, 1000, w1), stack2 = Put(queue, type, d, f, 2000, w2),
         stack3 = Put(queue, type, f, d, 3000, w3);
    for (int64_t i = 0; i < e; ++i) {
      experts.push_back({std::move(stack1[i]), std::move(stack2[i]), std::move(stack3[i])});
    }
    Weight staging = Weight::Staging(kF32Weights, e, d);
    for (int64_t i = 0; i < e; ++i) {
      staging.SetRow(i, std::span<const float>(router_values).subspan(i * d, d));
    }
    router = Weight(kF32Weights, e, d, Device::kCuda);
    router.CopyRows(queue, 0, staging, e);
  }

 private:
  std::vector<Weight> Put(Queue& queue, WeightType type, int64_t n, int64_t k, uint64_t stream,
                          std::vector<Floats>& values) {
    std::vector<Weight> stack = Weight::Stack(num_experts, type, n, k, Device::kCuda);
    values.resize(num_experts);
    std::vector<Weight> staging(num_experts);
    queue.pool().ParallelFor(num_experts, [&](int64_t e, int) {
      const Floats random = Random(stream + e, n * k, 1.0 / std::sqrt(k));
      staging[e] = Weight::Staging(type, n, k);
      values[e].resize(n * k);
      for (int64_t i = 0; i < n; ++i) {
        staging[e].SetRow(i, std::span<const float>(random).subspan(i * k, k));
        staging[e].GetRow(i, std::span(values[e]).subspan(i * k, k));
      }
    });
    for (int64_t e = 0; e < num_experts; ++e) stack[e].CopyRows(queue, 0, staging[e], n);
    return stack;
  }
};

Floats Tokens(int64_t tokens, int64_t width, DType dtype) {
  Floats x =
      dtype == DType::kF32 ? RandomFloats(7, tokens * width) : RandomBF16s(7, tokens * width);
  for (int64_t t = 0; t < tokens; ++t) x[t * width] = 1.0f;
  return x;
}

struct Result {
  Floats out, logits;
};

// What is left over from other work in the memory that the op borrows.
void PoisonScratch(Queue& queue) {
  Scratch scratch(queue);
  constexpr int64_t kBytes = 1 << 26;
  const std::vector<uint8_t> poison(kBytes, 0xFF);
  queue.CopyToDevice(scratch.Get<uint8_t>(kBytes), poison.data(), kBytes);
}

Result Mixed(Queue& queue, const Mixture& m, const Floats& x, int64_t k, DType dtype) {
  PoisonScratch(queue);
  const int64_t tokens = std::ssize(x) / m.width;
  const CudaTensor in(queue, dtype, {tokens, m.width}, x);
  const CudaTensor logits(queue, DType::kF32, {tokens, m.num_experts});
  const CudaTensor out(queue, dtype, {tokens, m.width});
  cuda::Moe(
      queue,
      {.x = in, .router = &m.router, .k = k, .experts = m.experts, .logits = logits, .out = out});
  queue.Wait();
  return {out.ToFloat(), logits.ToFloat()};
}

// Every `stride`-th token from its formula, with the experts that the GPU's logits choose.
void ExpectFollowsFormula(Queue& queue, const Mixture& m, const Floats& x, int64_t k,
                          const Result& got, double limit, int64_t stride = 1) {
  const int64_t tokens = std::ssize(x) / m.width, e = m.num_experts, d = m.width;
  std::vector<double> logits(tokens * e);
  queue.pool().ParallelFor(tokens * e, [&](int64_t i, int) {
    for (int64_t j = 0; j < d; ++j) {
      logits[i] += static_cast<double>(x[i / e * d + j]) *
                   static_cast<double>(m.router_values[i % e * d + j]);
    }
  });
  EXPECT_LE(RelativeError(got.logits, logits), 2e-6);

  const int64_t checked = (tokens + stride - 1) / stride;
  std::vector<double> want(checked * d);
  Floats out(checked * d);
  queue.pool().ParallelFor(checked, [&](int64_t i, int) {
    const int64_t t = i * stride;
    const auto route = RouteByFormula(std::span(got.logits).subspan(t * e, e), k);
    for (int64_t c = 0; c < k; ++c) {
      const int32_t expert = route.experts[c];
      const auto row =
          ReferenceExpert(std::span(x).subspan(t * d, d), m.w1[expert], m.w2[expert], m.w3[expert]);
      for (int64_t j = 0; j < d; ++j) want[i * d + j] += route.weights[c] * row[j];
    }
    std::copy_n(got.out.begin() + t * d, d, out.begin() + i * d);
  });
  EXPECT_LE(RelativeError(out, want), limit);
  for (const float v : got.out) {
    if (!std::isfinite(v)) {
      ADD_FAILURE() << "not finite, or never written";
      break;
    }
  }
}

TEST_F(MoeCudaTest, Float32FollowsTheFormula) {
  Queue queue(16, Device::kCuda);
  for (const WeightType& type :
       {kF32Weights, kBF16Weights, WeightType{DType::kI8, 32}, WeightType{DType::kI8, 128}}) {
    for (const MoeCase& c : kMoeCases) {
      SCOPED_TRACE(std::string(c.name) + ", weights " + ToString(type.dtype));
      const Mixture m(queue, c.experts, c.width, c.inner, type);
      const Floats x = Tokens(c.tokens, c.width, DType::kF32);
      ExpectFollowsFormula(queue, m, x, c.k, Mixed(queue, m, x, c.k, DType::kF32), 1e-5);
    }
  }
}

TEST_F(MoeCudaTest, ManyBlocksOfTokensAreNumberedInOrder) {
  Queue queue(16, Device::kCuda);
  for (const int64_t num_experts : {1, 5, 32, 200, 256}) {
    SCOPED_TRACE(num_experts);
    const Mixture m(queue, num_experts, 20, 12, kF32Weights);
    const int64_t k = std::min<int64_t>(num_experts, 8);
    const Floats x = Tokens(1500, 20, DType::kF32);
    ExpectFollowsFormula(queue, m, x, k, Mixed(queue, m, x, k, DType::kF32), 1e-5, 3);
  }
}

// How far bf16 may be off: x is exact; h, an expert's results and the sum are rounded, 1.6e-3 each
// where numbers are spread evenly over a power of two.
constexpr double kBF16Limit = 3.5e-3;
// With weights that were rounded twice more.
constexpr double kInt8Limit = 4.5e-3;

struct Bf16Case {
  const char* name;
  int64_t tokens, experts, k, width, inner;
  double skew = 0.0;
  int64_t stride = 1;
};

void ExpectBf16FollowsTheFormula(std::span<const Bf16Case> cases,
                                 std::span<const WeightType> types) {
  Queue queue(16, Device::kCuda);
  for (const WeightType& type : types) {
    for (const Bf16Case& c : cases) {
      SCOPED_TRACE(std::string(c.name) + ", weights " + ToString(type.dtype) + ", group " +
                   std::to_string(type.group));
      const Mixture m(queue, c.experts, c.width, c.inner, type, c.skew);
      const Floats x = Tokens(c.tokens, c.width, DType::kBF16);
      const double limit = type.dtype == DType::kI8 ? kInt8Limit : kBF16Limit;
      ExpectFollowsFormula(queue, m, x, c.k, Mixed(queue, m, x, c.k, DType::kBF16), limit,
                           c.stride);
    }
  }
}

constexpr WeightType kTypes[] = {
    kBF16Weights, {DType::kI8, 32}, {DType::kI8, 64}, {DType::kI8, 128}};

TEST_F(MoeCudaTest, FewRowsFollowTheFormula) {
  constexpr Bf16Case kCases[] = {
      {"one token", 1, 8, 2, 512, 512},
      {"a step of w1, three of w2", 3, 4, 1, 512, 1536},
      {"all tokens to the same experts", 60, 8, 2, 1024, 512, 200.0},
      {"most experts touched", 64, 32, 2, 512, 512},
      {"eight experts a token", 16, 16, 8, 512, 512},
  };
  ExpectBf16FollowsTheFormula(kCases, kTypes);
}

TEST_F(MoeCudaTest, ManyRowsFollowTheFormula) {
  constexpr Bf16Case kCases[] = {
      {"a few rows each", 130, 32, 2, 128, 128},
      {"one expert, one tile", 129, 1, 1, 64, 128},
      {"210 rows an expert", 210, 2, 2, 64, 192},
      {"257 rows an expert", 257, 2, 2, 192, 64},
      {"320 rows an expert", 320, 2, 2, 64, 192},
      {"many tiles of both", 700, 3, 2, 320, 448, 0.0, 7},
      {"k and n off the tiles", 333, 4, 2, 144, 208, 0.0, 5},
      {"skewed, groups of an expert cut", 5000, 3, 1, 64, 64, 8.0, 11},
      {"eight of forty", 600, 40, 8, 128, 64, 0.0, 7},
  };
  ExpectBf16FollowsTheFormula(kCases, kTypes);
}

TEST_F(MoeCudaTest, AnyShapeWorksInBf16) {
  constexpr Bf16Case kCases[] = {
      {"odd widths", 40, 4, 2, 33, 17},
      {"odd widths, many rows", 300, 4, 2, 50, 70},
      {"eights", 300, 4, 2, 40, 72},
  };
  constexpr WeightType kSome[] = {kF32Weights, kBF16Weights, {DType::kI8, 32}};
  ExpectBf16FollowsTheFormula(kCases, kSome);
}

TEST_F(MoeCudaTest, ATokenHasTheSameBitsInAnyCompanyOfItsPath) {
  Queue queue(16, Device::kCuda);
  struct Company {
    DType dtype;
    WeightType type;
    int64_t all, some;
  };
  for (const Company& c :
       {Company{DType::kBF16, kBF16Weights, 64, 1}, Company{DType::kBF16, {DType::kI8, 64}, 64, 1},
        Company{DType::kBF16, kBF16Weights, 900, 70},
        Company{DType::kBF16, {DType::kI8, 64}, 900, 70},
        Company{DType::kF32, kF32Weights, 300, 1}}) {
    SCOPED_TRACE(ToString(c.type.dtype) + " of " + std::to_string(c.all));
    const Mixture m(queue, 4, 512, 512, c.type);
    const Floats x = Tokens(c.all, m.width, c.dtype);
    const Result whole = Mixed(queue, m, x, 2, c.dtype);
    for (int64_t t = 0; t + c.some <= c.all; t += std::max<int64_t>(c.all / 5, 1)) {
      const auto from = x.begin() + t * m.width;
      const Result part = Mixed(queue, m, {from, from + c.some * m.width}, 2, c.dtype);
      const auto want = whole.out.begin() + t * m.width;
      EXPECT_TRUE(SameBits(part.out, Floats(want, want + c.some * m.width))) << "token " << t;
    }
    EXPECT_TRUE(SameBits(Mixed(queue, m, x, 2, c.dtype).out, whole.out)) << "again";
  }
}

TEST_F(MoeCudaTest, EqualLogitsGoToTheLowerExperts) {
  Queue queue(1, Device::kCuda);
  Mixture m(queue, 6, 16, 8, kF32Weights);
  m.router = Weight(kF32Weights, 6, 16, Device::kCuda);  // zeros
  std::ranges::fill(m.router_values, 0.0f);
  const Floats x = Tokens(9, 16, DType::kF32);
  ExpectFollowsFormula(queue, m, x, 2, Mixed(queue, m, x, 2, DType::kF32), 1e-5);
}

TEST_F(MoeCudaTest, RowsMayBeStrided) {
  Queue queue(16, Device::kCuda);
  for (const int64_t tokens : {5, 200}) {
    const Mixture m(queue, 4, 512, 512, kBF16Weights);
    const Floats x = Tokens(tokens, 512, DType::kBF16);
    const Result want = Mixed(queue, m, x, 2, DType::kBF16);
    Floats wide(tokens * 640, kNaN);
    for (int64_t t = 0; t < tokens; ++t) {
      std::copy_n(x.begin() + t * 512, 512, wide.begin() + t * 640);
    }
    const CudaTensor in(queue, DType::kBF16, {tokens, 640}, wide);
    const CudaTensor logits(queue, DType::kF32, {tokens, 4});
    const CudaTensor out(queue, DType::kBF16, {tokens, 640});
    Tensor narrow_in = in, narrow_out = out;
    narrow_in.shape[1] = narrow_out.shape[1] = 512;
    cuda::Moe(queue, {.x = narrow_in,
                      .router = &m.router,
                      .k = 2,
                      .experts = m.experts,
                      .logits = logits,
                      .out = narrow_out});
    const Floats got = out.ToFloat();
    Floats rows;
    for (int64_t t = 0; t < tokens; ++t) {
      rows.insert(rows.end(), got.begin() + t * 640, got.begin() + t * 640 + 512);
      EXPECT_TRUE(std::isnan(got[t * 640 + 512])) << "wrote next to row " << t;
    }
    EXPECT_TRUE(SameBits(rows, want.out));
  }
}

TEST_F(MoeCudaTest, NoTokensAreNoWork) {
  Queue queue(1, Device::kCuda);
  const Mixture m(queue, 2, 16, 16, kF32Weights);
  const Tensor none(static_cast<float*>(nullptr), {0, 16});
  const Tensor logits(static_cast<float*>(nullptr), {0, 2});
  cuda::Moe(queue, {.x = none,
                    .router = &m.router,
                    .k = 1,
                    .experts = m.experts,
                    .logits = logits,
                    .out = none});
  queue.Wait();
}

TEST_F(MoeCudaTest, ShapesThatDisagreeAreABug) {
  Queue queue(1, Device::kCuda);
  const Mixture m(queue, 2, 16, 16, kF32Weights);
  const CudaTensor x(queue, DType::kF32, {3, 16}), logits(queue, DType::kF32, {3, 2}),
      wide(queue, DType::kF32, {3, 17});
  MoeArgs args{
      .x = x, .router = &m.router, .k = 3, .experts = m.experts, .logits = logits, .out = x};
  EXPECT_THROW(cuda::Moe(queue, args), Bug) << "three of two experts";
  args.k = 2;
  args.out = wide;
  EXPECT_THROW(cuda::Moe(queue, args), Bug);
  args.out = x;
  std::vector<ExpertWeights> apart;
  for (int i = 0; i < 2; ++i) {
    const auto one = [] { return Weight(kF32Weights, 16, 16, Device::kCuda); };
    apart.push_back({one(), one(), one()});
  }
  args.experts = apart;
  EXPECT_THROW(cuda::Moe(queue, args), Bug) << "no stack";
}

}  // namespace
}  // namespace mm01
