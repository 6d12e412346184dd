// Lightning attention forward and backward at Text-01's shape: 64 heads of 128, bf16, one document.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/rng.h"
#include "device/device.h"
#include "eval/bench_gpu/harness.h"
#include "kernels/lightning/lightning_backward_cuda.h"
#include "kernels/lightning/lightning_backward_ref.h"
#include "tensor/dtype.h"

namespace mm01::gpu {
namespace {

constexpr int64_t kHeads = 64, kDim = 128, kWidth = kHeads * kDim;
constexpr int64_t kPeriod = 509;  // random rows, over and over
constexpr int64_t kElement = SizeOf(DType::kBF16);

// SiLU of normal numbers for q, k and v, normal ones for a gradient; rounded to bf16.
std::vector<bf16> Inputs(uint64_t stream, int64_t width, bool silu) {
  std::vector<bf16> x(static_cast<size_t>(kPeriod * width));
  for (size_t i = 0; i < x.size(); ++i) {
    const double normal = RandomNormal(7, stream, i);
    x[i] = ToBF16(static_cast<float>(silu ? normal / (1.0 + std::exp(-normal)) : normal));
  }
  return x;
}

// Rows of the period over and over.
class Repeated {
 public:
  Repeated(Queue& queue, int64_t rows, const std::vector<bf16>& period)
      : buffer_(rows * std::ssize(period) / kPeriod * kElement, Device::kCuda) {
    const int64_t bytes = std::ssize(period) * kElement;
    queue.CopyToDevice(buffer_.data(), period.data(), std::min(bytes, buffer_.bytes()));
    for (int64_t at = bytes; at < buffer_.bytes(); at += bytes) {
      queue.CopyOnDevice(buffer_.data() + at, buffer_.data(),
                         std::min(bytes, buffer_.bytes() - at));
    }
    queue.Wait();
  }
  bf16* data() const { return buffer_.As<bf16>(); }

 private:
  Buffer buffer_;
};

// q, k and v [T, H, 3, K] of a layer and d_out [T, H, V], and room for what comes of them.
struct Rows {
  std::vector<bf16> qkv_period = Inputs(1, 3 * kWidth, true);
  std::vector<bf16> d_out_period = Inputs(2, kWidth, false);
  int64_t rows;
  Repeated qkv, d_out;
  Buffer out, d_qkv, slope;

  Rows(Queue& queue, int64_t num_rows)
      : rows(num_rows),
        qkv(queue, num_rows, qkv_period),
        d_out(queue, num_rows, d_out_period),
        out(num_rows * kWidth * kElement, Device::kCuda),
        d_qkv(3 * num_rows * kWidth * kElement, Device::kCuda),
        slope(kHeads * SizeOf(DType::kF32), Device::kCuda) {
    const std::vector<float> slopes = LightningSlopes(SlopeRule::kOriginal, kHeads, 0, 80);
    queue.CopyToDevice(slope.data(), slopes.data(), slope.bytes());
    queue.Wait();
  }

  // n rows of `heads` heads from row `first` on, with the same memory seen as rows of that width.
  struct View {
    const Rows& rows;
    int64_t first, n, heads;

    Tensor ByHead(bf16* data) const {
      return Tensor(data + first * heads * kDim, {n, heads, kDim});
    }
    Tensor Third(bf16* data, int64_t which) const {
      Tensor t(data + (first * 3 * heads + which) * kDim, {n, heads, kDim});
      t.stride = {3 * heads * kDim, 3 * kDim, 1};
      return t;
    }
    Tensor Slope() const { return Tensor(rows.slope.As<float>(), {heads}); }

    void Pass(Queue& queue, const Tensor& cu) const {
      cuda::LightningPass(queue, {.q = Third(rows.qkv.data(), 0),
                                  .k = Third(rows.qkv.data(), 1),
                                  .v = Third(rows.qkv.data(), 2),
                                  .slope = Slope(),
                                  .cu_seqlens = cu,
                                  .s_in = {},
                                  .out = ByHead(rows.out.As<bf16>()),
                                  .s_out = {}});
    }
    void Backward(Queue& queue, const Tensor& cu) const {
      cuda::LightningBackward(queue, {.q = Third(rows.qkv.data(), 0),
                                      .k = Third(rows.qkv.data(), 1),
                                      .v = Third(rows.qkv.data(), 2),
                                      .slope = Slope(),
                                      .cu_seqlens = cu,
                                      .s_in = {},
                                      .d_out = ByHead(rows.d_out.data()),
                                      .d_s_out = {},
                                      .dq = Third(rows.d_qkv.As<bf16>(), 0),
                                      .dk = Third(rows.d_qkv.As<bf16>(), 1),
                                      .dv = Third(rows.d_qkv.As<bf16>(), 2),
                                      .d_s_in = {}});
    }
  };
};

// Documents of `length` rows.
class Offsets {
 public:
  Offsets(Queue& queue, int64_t documents, int64_t length)
      : buffer_((documents + 1) * SizeOf(DType::kI64), Device::kCuda) {
    std::vector<int64_t> cu;
    for (int64_t n = 0; n <= documents; ++n) cu.push_back(n * length);
    queue.CopyToDevice(buffer_.data(), cu.data(), buffer_.bytes());
    queue.Wait();
  }
  Tensor cu() const {
    return Tensor(buffer_.As<int64_t>(), {buffer_.bytes() / SizeOf(DType::kI64)});
  }

 private:
  Buffer buffer_;
};

double RelativeError(const std::vector<bf16>& got, int64_t which, int64_t parts,
                     const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < std::ssize(want); ++i) {
    const int64_t at = (i / kDim * parts + which) * kDim + i % kDim;
    const double d =
        static_cast<double>(ToFloat(got[static_cast<size_t>(at)])) - want[static_cast<size_t>(i)];
    difference += d * d;
    norm += want[static_cast<size_t>(i)] * want[static_cast<size_t>(i)];
  }
  return std::sqrt(difference / norm);
}

// A document of 200 rows.
void CheckAnswers(Harness& h, const Rows& rows) {
  constexpr int64_t kTokens = 200;
  Queue& queue = h.queue();
  const Offsets offsets(queue, 1, kTokens);
  const Rows::View view{rows, 0, kTokens, kHeads};
  view.Pass(queue, offsets.cu());
  view.Backward(queue, offsets.cu());
  std::vector<bf16> out(static_cast<size_t>(kTokens * kWidth)), d_qkv(3 * out.size());
  queue.CopyToHost(out.data(), rows.out.data(), std::ssize(out) * kElement);
  queue.CopyToHost(d_qkv.data(), rows.d_qkv.data(), std::ssize(d_qkv) * kElement);

  const auto part = [&](const std::vector<bf16>& period, int64_t which, int64_t parts) {
    std::vector<double> x;
    for (int64_t i = which * kDim; i < kTokens * kWidth * parts; i += parts * kDim) {
      for (int64_t j = i; j < i + kDim; ++j) {
        x.push_back(static_cast<double>(ToFloat(period[static_cast<size_t>(j)])));
      }
    }
    return x;
  };
  const std::vector<float> slopes = LightningSlopes(SlopeRule::kOriginal, kHeads, 0, 80);
  LightningReference want{.heads = kHeads,
                          .dim = kDim,
                          .q = part(rows.qkv_period, 0, 3),
                          .k = part(rows.qkv_period, 1, 3),
                          .v = part(rows.qkv_period, 2, 3),
                          .slope = std::vector<double>(slopes.begin(), slopes.end()),
                          .cu_seqlens = {0, kTokens},
                          .s_in = {},
                          .out = {},
                          .s_out = {},
                          .dq = {},
                          .dk = {},
                          .dv = {},
                          .d_s_in = {}};
  want.Pass();
  want.Backward(part(rows.d_out_period, 0, 1), {});
  const double errors[] = {RelativeError(out, 0, 1, want.out), RelativeError(d_qkv, 0, 3, want.dq),
                           RelativeError(d_qkv, 1, 3, want.dk),
                           RelativeError(d_qkv, 2, 3, want.dv)};
  h.Say(fmt::format("lightning backward: relative errors of out, dq, dk, dv {:.2e}",
                    fmt::join(errors, ", ")));
  for (const double e : errors) {
    if (!(e <= 3e-3)) throw DeviceError("lightning attention's gradients differ");
  }
}

struct Shape {
  const char* name;
  int64_t documents, length, heads;
};

}  // namespace

void BenchLightningBackward(Harness& h) {
  Queue& queue = h.queue();
  const Rows rows(queue, 65'536);
  CheckAnswers(h, rows);
  for (const Shape& s : {Shape{"lightning_fwd_bwd_x_floor_8192", 1, 8192, kHeads},
                         Shape{"lightning_fwd_bwd_x_floor_65536", 1, 65'536, kHeads},
                         Shape{"lightning_fwd_bwd_packed_x_floor_32x1024", 32, 1024, kHeads},
                         Shape{"lightning_fwd_bwd_2_heads_x_floor_2x32768", 2, 32'768, 2}}) {
    const int64_t n = s.documents * s.length;
    const int64_t parts = std::min<int64_t>(8, rows.rows * kHeads / (n * s.heads));
    const Offsets offsets(queue, s.documents, s.length);
    const auto pass = [&](int64_t i) {
      Rows::View{rows, i * n, n, s.heads}.Pass(queue, offsets.cu());
    };
    const auto backward = [&](int64_t i) {
      Rows::View{rows, i * n, n, s.heads}.Backward(queue, offsets.cu());
    };
    const double seconds = h.TimeGraph(parts, [&](int64_t i) {
      pass(i);
      backward(i);
    });
    // q, k, v and d_out are read and out, dq, dk and dv written; q, k and v are read twice.
    const double floor = h.Floor(static_cast<double>(11 * n * s.heads * kDim * kElement));
    h.Add({.name = s.name,
           .value = seconds / floor,
           .unit = "x floor",
           .ceiling = 1,
           .share = floor / seconds});
    h.Say(fmt::format("  {:.1f} us, floor {:.1f} us; the pass alone {:.1f} us, backward {:.1f} us",
                      seconds * 1e6, floor * 1e6, h.TimeGraph(parts, pass) * 1e6,
                      h.TimeGraph(parts, backward) * 1e6));
  }
}

}  // namespace mm01::gpu
