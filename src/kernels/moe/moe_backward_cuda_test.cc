// Routing in training on a GPU against the CPU's ops.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "device/device.h"
#include "kernels/moe/moe_backward.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

struct Case {
  int64_t tokens, experts, k, capacity;
};

constexpr Case kCases[] = {{1, 8, 2, 0},      {63, 4, 1, 0},    {64, 5, 5, 20},
                           {65, 32, 2, 3},    {257, 33, 3, 0},  {1009, 8, 2, 260},
                           {1009, 256, 8, 9}, {70'001, 8, 2, 0}};
constexpr int64_t kWidth = 24;

// A dispatch on the CPU, and the memory that it borrows.
struct OnCpu {
  std::vector<int32_t> expert, row, token;
  Floats logits, share, weight;
  TrainDispatch dispatch;

  OnCpu(Queue& queue, const Case& c)
      : expert(static_cast<size_t>(c.tokens * c.k)),
        row(expert.size()),
        token(expert.size()),
        logits(RandomFloats(1, c.tokens * c.experts)),
        share(expert.size()),
        weight(expert.size()) {
    // Some experts are liked more than others.
    for (size_t i = 0; i < logits.size(); ++i) {
      logits[i] += 0.1f * static_cast<float>(i % static_cast<size_t>(c.experts) % 5);
    }
    dispatch = MakeTrainDispatch(
        queue,
        {.logits = Logits(c),
         .room = {Tensor(expert.data(), {c.tokens, c.k}), Tensor(share.data(), {c.tokens, c.k}),
                  Tensor(row.data(), {c.tokens, c.k}), Tensor(token.data(), {c.tokens * c.k}),
                  Tensor(weight.data(), {c.tokens * c.k})},
         .capacity = c.capacity});
  }
  OnCpu(OnCpu&&) = delete;
  Tensor Logits(const Case& c) { return Tensor(logits.data(), {c.tokens, c.experts}); }
};

struct OnGpu {
  CudaTensor logits, expert, share, row, token, weight;
  TrainDispatch dispatch;

  OnGpu(Queue& queue, const Case& c, const Floats& values)
      : logits(queue, DType::kF32, {c.tokens, c.experts}, values),
        expert(queue, DType::kI32, {c.tokens, c.k}),
        share(queue, DType::kF32, {c.tokens, c.k}),
        row(queue, DType::kI32, {c.tokens, c.k}),
        token(queue, DType::kI32, {c.tokens * c.k}),
        weight(queue, DType::kF32, {c.tokens * c.k}),
        dispatch(MakeTrainDispatch(queue, {.logits = logits,
                                           .room = {expert, share, row, token, weight},
                                           .capacity = c.capacity})) {}
};

class MoeBackwardCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto found = FindCuda(); !found.ok()) GTEST_SKIP() << found.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }
  Queue& cpu() { return cpu_; }

 private:
  std::unique_ptr<Queue> queue_;
  Queue cpu_{1};
};

template <typename T>
std::vector<T> First(std::vector<T> x, int64_t n) {
  x.resize(static_cast<size_t>(n));
  return x;
}

TEST_F(MoeBackwardCuda, DispatchIsTheCpus) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.tokens << " tokens, " << c.experts << " experts");
    const OnCpu want(cpu(), c);
    const OnGpu got(queue(), c, want.logits);
    const int64_t rows = want.dispatch.num_rows();
    EXPECT_EQ(got.dispatch.counts, want.dispatch.counts);
    EXPECT_EQ(got.dispatch.offset, want.dispatch.offset);
    EXPECT_EQ(got.dispatch.dropped, want.dispatch.dropped);
    ExpectAllNear(got.dispatch.probability, want.dispatch.probability, 1e-6);
    EXPECT_EQ(got.expert.ToInt32(), want.expert);
    EXPECT_EQ(got.row.ToInt32(), want.row);
    EXPECT_EQ(First(got.token.ToInt32(), rows), First(want.token, rows));
    EXPECT_LE(RelativeError(got.share.ToFloat(), want.share), 1e-6);
    EXPECT_LE(RelativeError(First(got.weight.ToFloat(), rows), First(want.weight, rows)), 1e-6);
  }
}

TEST_F(MoeBackwardCuda, RowsGoThereAndBack) {
  for (const Case& c : kCases) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      for (const int64_t width : {kWidth, kWidth + 3}) {
        SCOPED_TRACE(testing::Message() << c.tokens << " tokens of " << width << ToString(type));
        const OnCpu there(cpu(), c);
        const OnGpu here(queue(), c, there.logits);
        const int64_t n = there.dispatch.num_rows();
        Floats x = type == DType::kBF16 ? RandomBF16s(2, c.tokens * width)
                                        : RandomFloats(2, c.tokens * width);
        Floats rows(static_cast<size_t>(n * width)), shares(rows.size());
        Floats y(x.size()), plain(x.size());
        const Tensor x_tensor(x.data(), {c.tokens, width}), rows_tensor(rows.data(), {n, width});
        GatherRows(cpu(), there.dispatch, x_tensor, false, rows_tensor);
        GatherRows(cpu(), there.dispatch, x_tensor, true, Tensor(shares.data(), {n, width}));
        CombineRows(cpu(), there.dispatch, rows_tensor, true, Tensor(y.data(), {c.tokens, width}));
        CombineRows(cpu(), there.dispatch, rows_tensor, false,
                    Tensor(plain.data(), {c.tokens, width}));
        const CudaTensor x_here(queue(), type, {c.tokens, width}, x);
        const CudaTensor rows_here(queue(), type, {n, width}),
            shares_here(queue(), type, {n, width});
        const CudaTensor y_here(queue(), type, {c.tokens, width});
        const CudaTensor plain_here(queue(), type, {c.tokens, width});
        GatherRows(queue(), here.dispatch, x_here, false, rows_here);
        GatherRows(queue(), here.dispatch, x_here, true, shares_here);
        CombineRows(queue(), here.dispatch, rows_here, true, y_here);
        CombineRows(queue(), here.dispatch, rows_here, false, plain_here);
        const double limit = type == DType::kF32 ? 1e-6 : 3e-3;
        EXPECT_TRUE(SameBits(rows_here.ToFloat(), rows));
        EXPECT_LE(RelativeError(shares_here.ToFloat(), shares), limit);
        EXPECT_LE(RelativeError(y_here.ToFloat(), y), limit);
        EXPECT_LE(RelativeError(plain_here.ToFloat(), plain), limit);
      }
    }
  }
}

TEST_F(MoeBackwardCuda, CombineAddNormIsTheCpus) {
  for (const Case& c : kCases) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      for (const int64_t width : {kWidth, kWidth + 3, int64_t{256}, int64_t{264}}) {
        SCOPED_TRACE(testing::Message() << c.tokens << " tokens of " << width << ToString(type));
        if (c.tokens * width > 1 << 22) continue;
        const OnCpu there(cpu(), c);
        const OnGpu here(queue(), c, there.logits);
        const int64_t n = there.dispatch.num_rows();
        const auto random = [&](uint64_t stream, int64_t count) {
          return type == DType::kBF16 ? RandomBF16s(stream, count) : RandomFloats(stream, count);
        };
        Floats rows = random(2, n * width), x = random(3, c.tokens * width), branch(x.size());
        Floats weight = RandomFloats(4, width), sum(x.size()), out(x.size());
        const auto matrix = [&](Floats& m) { return Tensor(m.data(), {c.tokens, width}); };
        AddNormArgs norm{.x = matrix(x),
                         .branch = matrix(branch),
                         .alpha = 1.5f,
                         .beta = 0.5f,
                         .weight = Tensor(weight.data(), {width}),
                         .sum = matrix(sum),
                         .out = matrix(out)};
        CombineAddNorm(cpu(), there.dispatch, Tensor(rows.data(), {n, width}), norm);
        const CudaTensor rows_here(queue(), type, {n, width}, rows);
        const CudaTensor x_here(queue(), type, {c.tokens, width}, x);
        const CudaTensor branch_here(queue(), type, {c.tokens, width});
        const CudaTensor weight_here(queue(), DType::kF32, {width}, weight);
        const CudaTensor sum_here(queue(), type, {c.tokens, width});
        const CudaTensor out_here(queue(), type, {c.tokens, width});
        norm.x = x_here;
        norm.branch = branch_here;
        norm.weight = weight_here;
        norm.sum = sum_here;
        norm.out = out_here;
        CombineAddNorm(queue(), here.dispatch, rows_here, norm);
        const double limit = type == DType::kF32 ? 1e-6 : 4e-3;
        EXPECT_LE(RelativeError(sum_here.ToFloat(), sum), limit);
        EXPECT_LE(RelativeError(out_here.ToFloat(), out), limit);
        norm.sum = {};
        CombineAddNorm(queue(), here.dispatch, rows_here, norm);
        EXPECT_LE(RelativeError(out_here.ToFloat(), out), limit) << "without a sum";
      }
    }
  }
}

// Also of widths and of routers that take two passes.
TEST_F(MoeBackwardCuda, GradientsOfRowsAndOfTheRouterAddUp) {
  for (const Case& c : kCases) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      for (const int64_t width : {kWidth, kWidth + 3, int64_t{256}, int64_t{264}, int64_t{8192}}) {
        SCOPED_TRACE(testing::Message() << c.tokens << " tokens of " << width << ToString(type));
        if (c.tokens * width > 1 << 23) continue;
        const OnCpu there(cpu(), c);
        const OnGpu here(queue(), c, there.logits);
        const int64_t n = there.dispatch.num_rows();
        const auto random = [&](uint64_t stream, int64_t count) {
          return type == DType::kBF16 ? RandomBF16s(stream, count) : RandomFloats(stream, count);
        };
        Floats rows = random(2, n * width), d_logits = random(3, c.tokens * c.experts);
        Floats router = random(4, c.experts * width), want(static_cast<size_t>(c.tokens * width));
        CombineGradients(cpu(), there.dispatch,
                         {.rows = Tensor(rows.data(), {n, width}),
                          .d_logits = Tensor(d_logits.data(), {c.tokens, c.experts}),
                          .router = Tensor(router.data(), {c.experts, width}),
                          .d_x = Tensor(want.data(), {c.tokens, width})});
        const CudaTensor rows_here(queue(), type, {n, width}, rows);
        const CudaTensor d_logits_here(queue(), type, {c.tokens, c.experts}, d_logits);
        const CudaTensor router_here(queue(), type, {c.experts, width}, router);
        const CudaTensor got(queue(), type, {c.tokens, width});
        CombineGradients(
            queue(), here.dispatch,
            {.rows = rows_here, .d_logits = d_logits_here, .router = router_here, .d_x = got});
        EXPECT_LE(RelativeError(got.ToFloat(), want), type == DType::kF32 ? 1e-5 : 4e-3);
      }
    }
  }
}

TEST_F(MoeBackwardCuda, GradientsOfLogitsAreTheCpus) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.tokens << " tokens, " << c.experts << " experts");
    OnCpu there(cpu(), c);
    const OnGpu here(queue(), c, there.logits);
    Floats weighted = RandomFloats(3, there.dispatch.num_rows());
    Floats d_logits(there.logits.size());
    std::vector<double> balance;
    for (const float w : RandomFloats(4, c.experts)) balance.push_back(static_cast<double>(w));
    const Tensor want(d_logits.data(), {c.tokens, c.experts});
    RouteBackward(cpu(), there.dispatch, Tensor(weighted.data(), {std::ssize(weighted)}), want);
    BalanceBackward(cpu(), there.Logits(c), balance, 0.3, want);
    const CudaTensor weighted_here(queue(), DType::kF32, {std::ssize(weighted)}, weighted);
    const CudaTensor got(queue(), DType::kF32, {c.tokens, c.experts});
    RouteBackward(queue(), here.dispatch, weighted_here, got);
    BalanceBackward(queue(), here.logits, balance, 0.3, got);
    EXPECT_LE(RelativeError(got.ToFloat(), d_logits), 1e-5);
  }
}

}  // namespace
}  // namespace mm01
