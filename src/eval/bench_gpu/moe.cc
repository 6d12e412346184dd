// The mixture of experts at Text-01's shape: 32 experts of 9216 over a width of 6144, two a token.
// And the kernel of its products with one expert, beside cuBLASLt: lightning attention's
// projection.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "eval/bench_gpu/harness.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/dense_gemm.h"
#include "kernels/moe/moe.h"
#include "kernels/moe/moe_ref.h"

namespace mm01::gpu {
namespace {

constexpr int64_t kWidth = 6144, kInner = 9216, kExperts = 32, kChosen = 2;
constexpr int64_t kMostTokens = 16384;
constexpr int64_t kGroup = 128;
// One matrix of all experts, on the device and as its periods.
struct Matrix {
  std::vector<Weight> stack;
  std::vector<bf16> values;  // of bf16 weights, or scales
  std::vector<int8_t> quantized;
  int64_t n, k;

  Matrix(Queue& queue, WeightType type, int64_t n, int64_t k, uint64_t stream)
      : stack(Weight::Stack(kExperts, type, n, k, Device::kCuda)), n(n), k(k) {
    const double deviation = 1.0 / std::sqrt(static_cast<double>(k));
    const bool int8 = type.dtype == DType::kI8;
    for (uint64_t i = 0; i < kLongPeriod; ++i) {
      // Quantized numbers are even from -127 to 127, 73 in the root mean square.
      const double value = int8 ? deviation / 73 * (0.5 + RandomUniform(8, stream, i))
                                : deviation * RandomNormal(8, stream, i);
      values.push_back(ToBF16(static_cast<float>(value)));
      if (int8) {
        quantized.push_back(
            static_cast<int8_t>(static_cast<int>(RandomBits(9, stream, i) % 255) - 127));
      }
    }
    const int64_t count = kExperts * n * k;
    if (int8) {
      Repeat(queue, stack[0].data(), count, quantized);
      Repeat(queue, stack[0].scales(), count / kGroup, values);
    } else {
      Repeat(queue, stack[0].data(), count, values);
    }
  }

  // Row `row` of expert `expert` times x.
  double Product(int64_t expert, int64_t row, std::span<const double> x) const {
    const int64_t first = (expert * n + row) * k;
    double sum = 0;
    for (int64_t begin = 0; begin < k; begin += kGroup) {
      const int64_t at = (first + begin) % kLongPeriod;
      double part = 0;
      for (int64_t i = 0, j = at; i < kGroup; ++i, j = j + 1 == kLongPeriod ? 0 : j + 1) {
        const auto place = static_cast<size_t>(j);
        const double w = quantized.empty() ? ToFloat(values[place]) : quantized[place];
        part += w * x[static_cast<size_t>(begin + i)];
      }
      sum +=
          quantized.empty()
              ? part
              : part * ToFloat(values[static_cast<size_t>((first + begin) / kGroup % kLongPeriod)]);
    }
    return sum;
  }
};

class Layer {
 public:
  Layer(Harness& h, WeightType type)
      : h_(h),
        type_(type),
        w1_(h.queue(), type, kInner, kWidth, 1),
        w2_(h.queue(), type, kWidth, kInner, 2),
        w3_(h.queue(), type, kInner, kWidth, 3),
        router_({DType::kF32, 0}, kExperts, kWidth, Device::kCuda),
        x_(kMostTokens * kWidth * 2, Device::kCuda),
        out_(kMostTokens * kWidth * 2, Device::kCuda),
        logits_(kMostTokens * kExperts * 4, Device::kCuda) {
    for (int64_t e = 0; e < kExperts; ++e) {
      const auto i = static_cast<size_t>(e);
      experts_.push_back(
          {std::move(w1_.stack[i]), std::move(w2_.stack[i]), std::move(w3_.stack[i])});
    }
    std::vector<float> router;
    for (uint64_t i = 0; i < kExperts * kWidth; ++i) {
      router.push_back(static_cast<float>(RandomNormal(8, 4, i) / std::sqrt(double{kWidth})));
    }
    h.queue().CopyToDevice(const_cast<void*>(router_.data()), router.data(), router_.bytes());
    for (uint64_t i = 0; i < kLongPeriod; ++i) {
      x_period_.push_back(ToBF16(static_cast<float>(RandomNormal(8, 5, i))));
    }
    Repeat(h.queue(), x_.data(), kMostTokens * kWidth, x_period_);
  }

  // Tokens `first` and those after it.
  void Call(int64_t first, int64_t tokens) {
    const auto rows = [&](DType type, const Buffer& b, int64_t width) {
      return Tensor(type, b.data(), {kMostTokens, width}).Rows(first, first + tokens);
    };
    Moe(h_.queue(), {.x = rows(DType::kBF16, x_, kWidth),
                     .router = &router_,
                     .k = kChosen,
                     .experts = experts_,
                     .logits = rows(DType::kF32, logits_, kExperts),
                     .out = rows(DType::kBF16, out_, kWidth)});
  }

  // Some of the tokens of a call against the formula.
  void Check(int64_t first, int64_t tokens, double limit) {
    Call(first, tokens);
    double difference = 0, norm = 0;
    for (const int64_t t : {first, first + tokens / 2, first + tokens - 1}) {
      const std::vector<double> want = Reference(t);
      std::vector<bf16> got(kWidth);
      h_.queue().CopyToHost(got.data(), out_.As<bf16>() + t * kWidth, kWidth * 2);
      for (size_t i = 0; i < want.size(); ++i) {
        const double d = ToFloat(got[i]) - want[i];
        difference += d * d;
        norm += want[i] * want[i];
      }
    }
    const double error = std::sqrt(difference / norm);
    h_.Say(fmt::format("moe: {} tokens, {} weights, differ from the formula by {:.2e}", tokens,
                       ToString(type_.dtype), error));
    if (!(error <= limit)) throw DeviceError("the mixture of experts gives a wrong answer");
  }

  // Bytes of the experts that tokens first .. first + tokens - 1 choose, all weights of them.
  double BytesTouched(int64_t first, int64_t tokens) {
    std::vector<bool> touched(kExperts);
    for (int64_t t = first; t < first + tokens; ++t) {
      for (const int32_t e : Route(t).experts) touched[static_cast<size_t>(e)] = true;
    }
    const ExpertWeights& e = experts_[0];
    return static_cast<double>(std::ranges::count(touched, true) *
                               (e.w1.bytes() + e.w2.bytes() + e.w3.bytes()));
  }

  double Prefill(int64_t tokens) {
    return h_.Time([&](int64_t) { Call(0, tokens); });
  }

  // Bytes a second over `calls` steps of as many tokens each, none of them twice.
  double Decode(int64_t tokens, int64_t calls) {
    double bytes = 0;
    Call(0, tokens * calls);  // logits of all
    for (int64_t i = 0; i < calls; ++i) bytes += BytesTouched(i * tokens, tokens);
    const double seconds =
        h_.TimeGraph(calls, [&](int64_t i) { Call(i % calls * tokens, tokens); });
    return bytes / static_cast<double>(calls) / seconds;
  }

 private:
  ReferenceRoute Route(int64_t t) {
    std::vector<float> logits(kExperts);
    h_.queue().CopyToHost(logits.data(), logits_.As<float>() + t * kExperts, kExperts * 4);
    return RouteByFormula(logits, kChosen);
  }

  std::vector<double> Reference(int64_t t) {
    std::vector<double> x(kWidth), h(kInner), y(kWidth);
    for (int64_t i = 0; i < kWidth; ++i) {
      x[static_cast<size_t>(i)] =
          ToFloat(x_period_[static_cast<size_t>((t * kWidth + i) % kLongPeriod)]);
    }
    const ReferenceRoute route = Route(t);
    for (size_t c = 0; c < route.experts.size(); ++c) {
      const int64_t e = route.experts[c];
      h_.queue().pool().ParallelFor(kInner, [&](int64_t f, int) {
        const double gate = w1_.Product(e, f, x);
        h[static_cast<size_t>(f)] = gate / (1.0 + std::exp(-gate)) * w3_.Product(e, f, x);
      });
      h_.queue().pool().ParallelFor(kWidth, [&](int64_t d, int) {
        y[static_cast<size_t>(d)] += route.weights[c] * w2_.Product(e, d, h);
      });
    }
    return y;
  }

  Harness& h_;
  WeightType type_;
  Matrix w1_, w2_, w3_;
  std::vector<ExpertWeights> experts_;
  Weight router_;
  std::vector<bf16> x_period_;
  Buffer x_, out_, logits_;
};

void BenchType(Harness& h, WeightType type, const std::string& suffix) {
  Layer layer(h, type);
  for (const int64_t tokens : {1, 64, 4096}) layer.Check(3, tokens, tokens > 64 ? 4.5e-3 : 3e-3);
  for (const int64_t tokens : {int64_t{4096}, kMostTokens}) {
    const double seconds = layer.Prefill(tokens);
    const double flops = 2.0 * static_cast<double>(tokens * kChosen * 3 * kWidth * kInner);
    const double tflops = flops / seconds * 1e-12;
    h.Add({.name = fmt::format("moe_share_{}{}", tokens, suffix),
           .value = tflops,
           .unit = "TFLOP/s",
           .ceiling = h.gemm_tflops(),
           .share = tflops / h.gemm_tflops()});
  }
  for (const int64_t tokens : {1, 8, 64}) {
    const double tb_s = layer.Decode(tokens, tokens == 1 ? 64 : 12) * 1e-12;
    h.Add({.name = fmt::format("moe_decode_share_b{}{}", tokens, suffix),
           .value = tb_s,
           .unit = "TB/s",
           .ceiling = h.copy_tb_s(),
           .share = tb_s / h.copy_tb_s()});
  }
}

// out = SiLU(x w^T) for `rows` rows against the formula, and its speed against that of the
// library's product alone.
void BenchDense(Harness& h, int64_t rows) {
  constexpr int64_t kN = 24576;
  Queue& queue = h.queue();
  std::vector<bf16> period, w_period;
  for (uint64_t i = 0; i < kLongPeriod; ++i) {
    period.push_back(ToBF16(static_cast<float>(RandomNormal(8, 5, i))));
    w_period.push_back(
        ToBF16(static_cast<float>(RandomNormal(8, 1, i) / std::sqrt(double{kWidth}))));
  }
  const Buffer x(rows * kWidth * 2, Device::kCuda), w(kN * kWidth * 2, Device::kCuda),
      out(rows * kN * 2, Device::kCuda);
  Repeat(queue, x.data(), rows * kWidth, period);
  Repeat(queue, w.data(), kN * kWidth, w_period);
  const auto ours = [&](int64_t) {
    cuda::DenseGemm(queue, {.x = Tensor(DType::kBF16, x.data(), {rows, kWidth}),
                            .w = Tensor(DType::kBF16, w.data(), {kN, kWidth}),
                            .out = Tensor(DType::kBF16, out.data(), {rows, kN}),
                            .activation = Activation::kSilu});
  };
  ours(0);
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < 1000; ++i) {
    const int64_t row = i * 7919 % rows, n = i * 104729 % kN;
    double sum = 0;
    for (int64_t k = 0; k < kWidth; ++k) {
      sum += double{ToFloat(period[static_cast<size_t>((row * kWidth + k) % kLongPeriod)])} *
             ToFloat(w_period[static_cast<size_t>((n * kWidth + k) % kLongPeriod)]);
    }
    const double want = sum / (1.0 + std::exp(-sum));
    bf16 got;
    queue.CopyToHost(&got, out.As<bf16>() + row * kN + n, 2);
    difference += (ToFloat(got) - want) * (ToFloat(got) - want);
    norm += want * want;
  }
  if (!(std::sqrt(difference / norm) <= 3e-3)) throw DeviceError("DenseGemm gives a wrong answer");

  const double flops = 2.0 * static_cast<double>(rows * kN * kWidth);
  const double tflops = flops / h.Time(ours) * 1e-12;
  const double library = flops * 1e-12 / h.Time([&](int64_t) {
    cuda::MultiplyByLibrary(queue, {.x = x.data(),
                                    .ldx = kWidth,
                                    .w = w.data(),
                                    .ldw = kWidth,
                                    .out = out.data(),
                                    .ldo = kN,
                                    .m = rows,
                                    .n = kN,
                                    .k = kWidth,
                                    .in_type = DType::kBF16,
                                    .out_type = DType::kBF16});
  });
  h.Add({.name = fmt::format("dense_gemm_silu_{}", rows),
         .value = tflops,
         .unit = "TFLOP/s",
         .ceiling = library,
         .share = tflops / library});
}

}  // namespace

void BenchMoe(Harness& h) {
  if (cuda::LoadCublasLt().ok()) {
    for (const int64_t rows : {4096, 16384}) BenchDense(h, rows);
  }
  BenchType(h, {DType::kBF16, 0}, "");
  BenchType(h, {DType::kI8, kGroup}, "_int8");
}

}  // namespace mm01::gpu
