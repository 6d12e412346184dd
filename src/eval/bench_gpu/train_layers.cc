// Layers of Text-01 in training, forward and back, with bf16 weights and gradients: the experts
// alone, and one lightning and one softmax layer with theirs. What is worked out twice counts once.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "device/buffer.h"
#include "device/device.h"
#include "eval/bench_gpu/harness.h"
#include "eval/bench_tools.h"
#include "kernels/lightning/lightning.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_backward.h"
#include "kernels/rope/rope.h"
#include "model/text01/training_blocks.h"
#include "model/text01/training_plan.h"
#include "planner/flops.h"

namespace mm01::gpu {
namespace {

constexpr int64_t kPeriod = 1'000'003;  // random numbers, over and over

// Parameters, kept memory and rows of some layers. All experts hold the same numbers, so that what
// a token gets does not depend on which it chose.
class Layers {
 public:
  Layers(Queue& queue, const TextConfig& config, int64_t tokens)
      : queue_(queue),
        config_(config),
        tokens_(tokens),
        kept_(queue, config, kBF16, {.max_tokens = tokens}) {
    for (int64_t i = 0; i < kPeriod; ++i) {
      const double x = RandomNormal(11, 0, static_cast<uint64_t>(i));
      period_.push_back(ToBF16(static_cast<float>(x)));
      small_.push_back(ToBF16(static_cast<float>(x / std::sqrt(double(config.hidden_size)))));
    }
    for (const LayerKind kind : config.layers) layers_.push_back(MakeLayer(kind));
    for (KeptLayer& layer : kept_.layers) layer = layer.Rows(tokens);
    const int64_t d = config.hidden_size;
    x_ = Rows(d);
    d_out_ = Rows(d);
    Repeat(period_, x_);
    Repeat(period_, d_out_);
    out_ = Rows(d);
    d_x_ = Rows(d);
    const std::vector<int64_t> cu = {0, tokens};
    cu_ = Place(DType::kI64, cu.data(), {2});
    std::vector<int64_t> position;
    for (int64_t t = 0; t < tokens; ++t) position.push_back(t);
    cos_ = New(DType::kF32, {tokens, config.rotary_dim / 2});
    sin_ = New(DType::kF32, {tokens, config.rotary_dim / 2});
    RopeTable(queue, Place(DType::kI64, position.data(), {tokens}), config.rope_theta, cos_, sin_);
    balance_.assign(static_cast<size_t>(config.num_experts), 0.0);
  }

  void Mlp() {
    MlpForward(Pass(), layers_[0], kept_.layers[0], x_, out_);
    MlpBackward(0, x_, d_out_, d_x_);
  }

  // The experts' output and input gradient of one token, against the formula.
  void CheckMlp() {
    Mlp();
    const int64_t t = tokens_ / 3;
    const auto row = [&](const Tensor& rows) {
      std::vector<bf16> values(static_cast<size_t>(rows.dim(1)));
      queue_.CopyToHost(values.data(), rows.Rows(t, t + 1).data, std::ssize(values) * 2);
      std::vector<double> x;
      for (const bf16 v : values) x.push_back(static_cast<double>(ToFloat(v)));
      return x;
    };
    const std::vector<double> x = row(x_), d_out = row(d_out_);
    const int64_t d = config_.hidden_size, f = config_.ffn_size;
    std::vector<double> gate = Product(x, f, false), hidden(gate.size());
    // w1 and w3 begin with the same numbers, so w1 = w3.
    for (size_t i = 0; i < gate.size(); ++i) hidden[i] = gate[i] * Silu(gate[i]);
    const std::vector<double> d_hidden = Product(d_out, f, true);
    std::vector<double> d_gate;
    for (size_t i = 0; i < gate.size(); ++i) {
      const double s = 1 / (1 + std::exp(-gate[i]));
      const double slope = s + gate[i] * s * (1 - s);
      d_gate.push_back(d_hidden[i] * (gate[i] * slope + Silu(gate[i])));
    }
    Compare("output", row(out_), Output(hidden, d));
    Compare("gradient", row(d_x_), Transposed(d_gate, d));
  }

  // All layers, with norms and residuals, forward and back.
  void Forward() {
    for (size_t i = 0; i < layers_.size(); ++i) {
      const TrainLayer& layer = layers_[i];
      KeptLayer& kept = kept_.layers[i];
      const bool lightning = layer.kind == LayerKind::kLightning;
      Scratch scratch(queue_);
      const Tensor x = scratch.GetRows(kBF16, tokens_, config_.hidden_size);
      const Tensor branch = scratch.GetRows(kBF16, tokens_, config_.hidden_size);
      if (i == 0) queue_.CopyOnDevice(kept.before_attention.data, x_.data, x_.size() * 2);
      Norm(kept.before_attention, layer.input_norm, x);
      (lightning ? LightningForward : SoftmaxForward)(Pass(), layer, kept, x, branch);
      Add(x, branch, kept.before_mlp);
      Norm(kept.before_mlp, layer.mlp_norm, x);
      MlpForward(Pass(), layer, kept, x, branch);
      Add(x, branch, i + 1 < layers_.size() ? kept_.layers[i + 1].before_attention : kept_.last);
    }
  }
  void Backward() {
    queue_.CopyOnDevice(d_x_.data, d_out_.data, d_out_.size() * 2);
    for (size_t i = layers_.size(); i-- > 0;) {
      const TrainLayer& layer = layers_[i];
      const KeptLayer& kept = kept_.layers[i];
      const bool lightning = layer.kind == LayerKind::kLightning;
      SubLayer(kept.before_mlp, layer.mlp_norm,
               [&](const Tensor& x, const Tensor& d_x) { MlpBackward(i, x, d_x_, d_x); });
      SubLayer(kept.before_attention, layer.input_norm, [&](const Tensor& x, const Tensor& d_x) {
        (lightning ? LightningBackwardBlock : SoftmaxBackwardBlock)(Pass(), layer, kept, x, d_x_,
                                                                    d_x);
      });
    }
  }

 private:
  static constexpr DType kBF16 = DType::kBF16;

  Tensor New(DType type, std::initializer_list<int64_t> dims) {
    Tensor t(type, nullptr, dims);
    memory_.emplace_back(t.size() * SizeOf(type), Device::kCuda);
    t.data = memory_.back().data();
    return t;
  }
  Tensor Rows(int64_t width) { return New(kBF16, {tokens_, width}); }
  Tensor Place(DType type, const void* values, std::initializer_list<int64_t> dims) {
    const Tensor t = New(type, dims);
    queue_.CopyToDevice(t.data, values, t.size() * SizeOf(type));
    return t;
  }
  void Repeat(const std::vector<bf16>& period, const Tensor& to) {
    auto* const data = static_cast<bf16*>(to.data);
    queue_.CopyToDevice(data, period.data(), std::min(kPeriod, to.size()) * 2);
    for (int64_t n = kPeriod; n < to.size(); n += kPeriod) {
      queue_.CopyOnDevice(data + n, data, std::min(kPeriod, to.size() - n) * 2);
    }
  }
  // Matrices that all begin with the same numbers, one above the other.
  TrainTensor Stack(std::initializer_list<int64_t> rows, int64_t k) {
    int64_t n = 0;
    for (const int64_t r : rows) n += r;
    TrainTensor t{.value = {}, .gradient = New(kBF16, {n, k}), .weight = New(kBF16, {n, k})};
    int64_t at = 0;
    for (const int64_t r : rows) {
      Repeat(small_, t.weight.Rows(at, at + r));
      at += r;
    }
    return t;
  }
  TrainTensor Matrix(int64_t n, int64_t k) { return Stack({n}, k); }
  TrainTensor Ones(int64_t n) {
    const std::vector<float> ones(static_cast<size_t>(n), 1.0f);
    const Tensor value = Place(DType::kF32, ones.data(), {n});
    return {.value = value, .gradient = New(DType::kF32, {n}), .weight = value};
  }

  TrainLayer MakeLayer(LayerKind kind) {
    const TextConfig& c = config_;
    const int64_t d = c.hidden_size, width = c.num_heads * c.head_dim;
    TrainLayer l;
    l.kind = kind;
    l.input_norm = Ones(d);
    l.mlp_norm = Ones(d);
    l.out = Matrix(d, width);
    if (kind == LayerKind::kLightning) {
      l.inputs = Stack({3 * width, width}, d);
      l.norm = Ones(width);
      const std::vector<float> slope = LightningSlopes(SlopeRule::kOriginal, c.num_heads, 0, 80);
      l.slope = Place(DType::kF32, slope.data(), {c.num_heads});
    } else {
      const int64_t kv_width = c.num_kv_heads * c.head_dim;
      l.inputs = Stack({width, kv_width, kv_width}, d);
    }
    l.router = Matrix(c.num_experts, d);
    std::vector<float> router;
    for (int64_t i = 0; i < c.num_experts * d; ++i) {
      router.push_back(ToFloat(small_[static_cast<size_t>(i)]));
    }
    l.router.value = Place(DType::kF32, router.data(), {c.num_experts, d});
    for (int64_t e = 0; e < c.num_experts; ++e) {
      TrainExpert expert;
      expert.w2 = Matrix(d, c.ffn_size);
      expert.w13 = Stack({c.ffn_size, c.ffn_size}, d);
      l.experts.push_back(expert);
    }
    return l;
  }

  TrainPass Pass() const {
    return {.queue = queue_,
            .config = config_,
            .type = kBF16,
            .rows = tokens_,
            .capacity = 0,
            .cu_seqlens = cu_,
            .cos = cos_,
            .sin = sin_};
  }
  void MlpBackward(size_t i, const Tensor& x, const Tensor& d_out, const Tensor& d_x) {
    MlpBackwardBlock(Pass(), layers_[i], kept_.layers[i],
                     {.x = x, .d_out = d_out, .d_x = d_x, .balance = balance_});
  }
  void Norm(const Tensor& x, const TrainTensor& weight, const Tensor& out) {
    AddNorm(queue_, {.x = x, .branch = {}, .weight = weight.value, .sum = {}, .out = out});
  }
  void Add(const Tensor& x, const Tensor& branch, const Tensor& sum) {
    AddResidual(queue_, {.x = x,
                         .branch = branch,
                         .alpha = static_cast<float>(config_.mlp_residual.alpha),
                         .sum = sum});
  }
  template <typename Branch>
  void SubLayer(const Tensor& before, const TrainTensor& norm, Branch&& branch) {
    Scratch scratch(queue_);
    const Tensor x = scratch.GetRows(kBF16, tokens_, config_.hidden_size);
    const Tensor d_x = scratch.GetRows(kBF16, tokens_, config_.hidden_size);
    Norm(before, norm, x);
    branch(x, d_x);
    NormBackward(queue_, {.x = before,
                          .weight = norm.value,
                          .d_out = d_x,
                          .d_x = d_x_,
                          .d_weight = norm.gradient,
                          .carried = {d_x_, static_cast<float>(config_.mlp_residual.alpha)}});
  }

  // ---- the formula, with matrices that all repeat small_
  double Weight(int64_t i) const {
    return static_cast<double>(ToFloat(small_[static_cast<size_t>(i % kPeriod)]));
  }
  static double Silu(double x) { return x / (1 + std::exp(-x)); }
  // [n] = w x with w [n, D], or w^T x with w [D, n]
  std::vector<double> Product(const std::vector<double>& x, int64_t n, bool transposed) const {
    const int64_t k = std::ssize(x);
    std::vector<double> out(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        out[static_cast<size_t>(i)] +=
            Weight(transposed ? j * n + i : i * k + j) * x[static_cast<size_t>(j)];
      }
    }
    return out;
  }
  std::vector<double> Output(const std::vector<double>& hidden, int64_t d) const {
    return Product(hidden, d, false);
  }
  std::vector<double> Transposed(const std::vector<double>& d_gate, int64_t d) const {
    return Product(d_gate, d, true);
  }
  static void Compare(const char* what, const std::vector<double>& got,
                      const std::vector<double>& want) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      difference += (got[i] - want[i]) * (got[i] - want[i]);
      norm += want[i] * want[i];
    }
    const double error = std::sqrt(difference / norm);
    if (!(error <= 0.01)) {
      throw DeviceError(fmt::format("the experts' {} is off by {:.2e} in training", what, error));
    }
  }

  Queue& queue_;
  TextConfig config_;
  int64_t tokens_;
  KeptMemory kept_;
  std::deque<Buffer> memory_;
  std::vector<bf16> period_, small_;
  std::vector<TrainLayer> layers_;
  std::vector<double> balance_;
  Tensor x_, d_out_, out_, d_x_, cu_, cos_, sin_;
};

void AddShare(Harness& h, const char* name, double flops, double seconds) {
  const double tflops = flops / seconds * 1e-12;
  h.Add({.name = name,
         .value = tflops / h.gemm_tflops(),
         .unit = "of GEMM",
         .ceiling = 1,
         .share = tflops / h.gemm_tflops()});
  h.Say(fmt::format("  {:.2f} ms, {:.0f} TFLOP/s", seconds * 1e3, tflops));
}

}  // namespace

void BenchTrainLayers(Harness& h) {
  {
    constexpr int64_t kTokens = 16'384;
    const TextConfig config = eval::Text01Layers({LayerKind::kLightning}, 512);
    Layers layers(h.queue(), config, kTokens);
    layers.CheckMlp();
    const LayerParameters count = CountLayerParameters(config, LayerKind::kLightning);
    const double flops =
        3 * 2.0 * static_cast<double>((count.router + count.activated_experts) * kTokens);
    AddShare(h, "moe_fwd_bwd_share_16384", flops, h.Time([&](int64_t) { layers.Mlp(); }, 1.0));
  }
  constexpr int64_t kTokens = 8192;
  const TextConfig config = eval::Text01Layers({LayerKind::kLightning, LayerKind::kSoftmax}, 512);
  Layers layers(h.queue(), config, kTokens);
  // Half a block's rows stand before a row on average, and half of the document.
  const Flops one = FlopsPerToken(config, kTokens - kLightningBlock / 2);
  const double flops = 3 * (one.weights + one.lightning + one.softmax / 2) * kTokens;
  const double forward = h.Time([&](int64_t) { layers.Forward(); }, 0.5);
  const auto both = [&](int64_t) {
    layers.Forward();
    layers.Backward();
  };
  AddShare(h, "block_train_share_8192", flops, h.Time(both, 1.0));
  h.Say(fmt::format("  the way forward {:.2f} ms", forward * 1e3));
}

}  // namespace mm01::gpu
