// Lightning on a GPU over long inputs: the state's bits, offsets past 2^31, a million tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "device/device.h"
#include "kernels/lightning/lightning_cuda.h"
#include "kernels/lightning/lightning_ref.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/near.h"

namespace mm01 {
namespace {

using Floats = std::vector<float>;

// A sequence of `period` random rows over and over, normal numbers or SiLU of them: q, k and v as
// [T, H, 3, K] on the device, and its out [T, H, V].
class Long {
 public:
  struct Size {
    int64_t rows, heads, dim, period = 1021;
  };

  Long(Queue& queue, DType dtype, const Size& size, bool silu = false)
      : queue_(queue),
        dtype_(dtype),
        size_(size),
        qkv_(size.rows * width() * SizeOf(dtype), Device::kCuda),
        out_(size.rows * size.heads * size.dim * SizeOf(dtype), Device::kCuda),
        s_(queue, DType::kF32, {1, size.heads, size.dim, size.dim}),
        k_rows_(queue, dtype, {1, size.heads, kLightningBlock * size.dim}),
        v_rows_(queue, dtype, {1, size.heads, kLightningBlock * size.dim}),
        values_(RandomFloats(30, size.period * width())) {
    for (float& x : values_) {
      if (silu) x = x / (1.0f + std::exp(-x));
      if (dtype == DType::kBF16) x = ToFloat(ToBF16(x));
    }
    const CudaTensor once(queue, dtype, {size.period, width()}, values_);
    const int64_t row_bytes = width() * SizeOf(dtype);
    for (int64_t at = 0; at < size.rows; at += size.period) {
      queue.CopyOnDevice(qkv_.data() + at * row_bytes, once.tensor().data,
                         std::min(size.period, size.rows - at) * row_bytes);
    }
    PoisonDevice(queue, out_);
    queue.Wait();
  }

  // All rows in one call.
  void Run(const Floats& slope) {
    const CudaTensor slopes(queue_, DType::kF32, {size_.heads}, slope);
    const CudaTensor cu = CudaTensor::Int64(queue_, {0, size_.rows});
    const CudaTensor position = CudaTensor::Int64(queue_, {0});
    const CudaTensor slot = CudaTensor::Int32(queue_, {1}, {0});
    cuda::Lightning(queue_,
                    {.q = Part(0),
                     .k = Part(1),
                     .v = Part(2),
                     .slope = slopes,
                     .cu_seqlens = cu,
                     .position = position,
                     .slot = slot,
                     .max_rows = size_.rows,
                     .state = State(),
                     .out = Tensor(dtype_, out_.data(), {size_.rows, size_.heads, size_.dim})});
    queue_.Wait();
  }

  // Of the `count` rows before `end`, against a reference that begins `history` rows before it.
  double Error(int64_t head, float slope, int64_t history, int64_t end, int64_t count = 100) const {
    std::vector<double> state;
    const std::vector<double> all = Reference(head, slope, end - history, end, state);
    const int64_t row = size_.heads * size_.dim;
    std::vector<std::byte> bytes(static_cast<size_t>(count * row * SizeOf(dtype_)));
    queue_.CopyToHost(bytes.data(), out_.data() + (end - count) * row * SizeOf(dtype_),
                      std::ssize(bytes));
    Floats got;
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t i = t * row + head * size_.dim; i < t * row + (head + 1) * size_.dim; ++i) {
        got.push_back(dtype_ == DType::kBF16
                          ? ToFloat(reinterpret_cast<const bf16*>(bytes.data())[i])
                          : reinterpret_cast<const float*>(bytes.data())[i]);
      }
    }
    return RelativeError(got, std::vector<double>(all.end() - count * size_.dim, all.end()));
  }

  // Of the state after the last row, of the only head.
  double StateError(const Floats& slope) const {
    std::vector<double> want;
    Reference(0, slope[0], 0, size_.rows, want);
    const CudaTensor got(queue_, DType::kF32, {1, size_.dim, size_.dim});
    const CudaTensor slopes(queue_, DType::kF32, {1}, slope);
    cuda::LightningFinalState(queue_, State(), 0, size_.rows, slopes, got);
    return RelativeError(got.ToFloat(), want);
  }

 private:
  int64_t width() const { return size_.heads * 3 * size_.dim; }
  LightningState State() const { return {s_, k_rows_, v_rows_}; }
  Tensor Part(int64_t which) const {
    Tensor t(dtype_, qkv_.data() + which * size_.dim * SizeOf(dtype_),
             {size_.rows, size_.heads, size_.dim});
    t.stride = {width(), 3 * size_.dim, 1};
    return t;
  }
  // Rows begin .. end - 1 of a head, as if nothing were before them.
  std::vector<double> Reference(int64_t head, float slope, int64_t begin, int64_t end,
                                std::vector<double>& state) const {
    Floats parts[3];
    for (int64_t t = begin; t < end; ++t) {
      auto at = values_.begin() + t % size_.period * width() + head * 3 * size_.dim;
      for (Floats& part : parts) {
        part.insert(part.end(), at, at + size_.dim);
        at += size_.dim;
      }
    }
    state.assign(static_cast<size_t>(size_.dim * size_.dim), 0.0);
    return ReferenceLightning(parts[0], parts[1], parts[2], std::span(&slope, 1), size_.dim, state);
  }

  Queue& queue_;
  DType dtype_;
  Size size_;
  Buffer qkv_, out_;
  CudaTensor s_, k_rows_, v_rows_;  // poisoned
  Floats values_;
};

class LightningLongCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto gpu = FindCuda(); !gpu.ok()) GTEST_SKIP() << gpu.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }

 private:
  std::unique_ptr<Queue> queue_;
};

TEST_F(LightningLongCudaTest, TheStateOfASlowHeadKeepsItsBitsOverManyBlocks) {
  constexpr int64_t kRows = 16'001;
  const Floats slope = {LightningSlopes(SlopeRule::kOriginal, 64, 78, 80)[63]};
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    SCOPED_TRACE(ToString(dtype));
    Long run(queue(), dtype, {.rows = kRows, .heads = 1, .dim = 128, .period = kRows}, true);
    run.Run(slope);
    EXPECT_LE(run.Error(0, slope[0], kRows, kRows, kRows), dtype == DType::kF32 ? 1e-5 : 1.7e-3);
    EXPECT_LE(run.StateError(slope), 1e-5);
  }
}

TEST_F(LightningLongCudaTest, OffsetsPassTwoToThe31) {
  // Row 87,381 of [T, 64, 3, 128] begins at element 2^31.
  constexpr int64_t kRows = 100'003;
  const Floats slope = LightningSlopes(SlopeRule::kOriginal, 64, 0, 80);
  Long run(queue(), DType::kBF16, {.rows = kRows, .heads = 64, .dim = 128});
  run.Run(slope);
  for (const int64_t end : {int64_t{87'430}, kRows}) {
    EXPECT_LE(run.Error(0, slope[0], 200, end), 1.8e-3);
    EXPECT_LE(run.Error(31, slope[31], 400, end), 1.8e-3);
    EXPECT_LE(run.Error(63, slope[63], 4000, end), 1.8e-3);
  }
}

TEST_F(LightningLongCudaTest, AMillionTokensInOneCall) {
  constexpr int64_t kRows = (1 << 20) + 1;
  const Floats slope = {0.5f, 0.01f};
  for (const auto& [dtype, dim] : {std::pair{DType::kBF16, int64_t{128}}, {DType::kF32, 32}}) {
    Long run(queue(), dtype, {.rows = kRows, .heads = 2, .dim = dim});
    run.Run(slope);
    EXPECT_LE(run.Error(0, slope[0], 300, kRows), dtype == DType::kF32 ? 1e-5 : 1.8e-3);
    EXPECT_LE(run.Error(1, slope[1], 2000, kRows), dtype == DType::kF32 ? 1e-5 : 1.8e-3);
  }
}

}  // namespace
}  // namespace mm01
