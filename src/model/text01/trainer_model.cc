#include "model/text01/trainer_model.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/embed/embed_backward.h"
#include "kernels/fill/fill.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_backward.h"
#include "kernels/rope/rope.h"
#include "model/text01/training_blocks.h"
#include "model/text01/training_parameters.h"
#include "model/text01/training_plan.h"

namespace mm01 {
namespace {

class Trainer final : public TrainerModel {
 public:
  Trainer(Queue& queue, const TextConfig& config, const TrainOptions& options)
      : queue_(queue),
        config_(config),
        options_(options),
        type_(queue.device() == Device::kCpu || options.exact ? DType::kF32 : DType::kBF16),
        parameters_(queue, config, type_),
        kept_(queue, config, type_, options) {
    if (options_.vocab_used == 0) options_.vocab_used = config.vocab_size;
    Scratch(queue).Get<std::byte>(WorkingBytes(config, type_, queue.device(), options.max_tokens));
  }

  const TextConfig& config() const override { return config_; }
  std::span<const TrainParameter> parameters() const override { return parameters_.all; }
  std::vector<TrainMemoryLine> memory() const override {
    return MemoryPlan(config_, options_, parameters_, kept_);
  }

  void Initialise(uint64_t seed) override {
    parameters_.Initialise(queue_, config_, seed);
    ParametersChanged();
  }
  Status Load(const Checkpoint& checkpoint) override {
    MM01_RETURN_IF_ERROR(parameters_.Load(queue_, config_, checkpoint));
    ParametersChanged();
    return Status::Ok();
  }
  void ParametersChanged() override { parameters_.Changed(queue_); }
  void ZeroGradients() override {
    Fill(queue_, Tensor(parameters_.gradients.As<float>(), {1, parameters_.num_floats()}), 0.0f);
  }

  TrainLosses ForwardBackward(const TrainBatch& batch, double scale,
                              double auxiliary_scale) override {
    Scratch scratch(queue_);
    const TrainPass pass = MakePass(batch, scratch);
    Balance balance(options_.auxiliary_form, config_.num_experts);
    const Tensor x = scratch.GetRows(type_, pass.rows, config_.hidden_size);
    const Tensor d_h = scratch.GetRows(type_, pass.rows, config_.hidden_size);
    TrainLosses losses = Forward(pass, batch, balance, x);
    Head(batch, scale, x, &d_h, losses);
    Backward(pass, batch, balance, auxiliary_scale * options_.auxiliary_coefficient, d_h);
    return losses;
  }

  TrainLosses Evaluate(const TrainBatch& batch) override {
    Scratch scratch(queue_);
    const TrainPass pass = MakePass(batch, scratch);
    Balance balance(options_.auxiliary_form, config_.num_experts);
    const Tensor x = scratch.GetRows(type_, pass.rows, config_.hidden_size);
    TrainLosses losses = Forward(pass, batch, balance, x);
    Head(batch, 0.0, x, nullptr, losses);
    return losses;
  }

 private:
  // What the layers of this batch share, and their views of the kept memory.
  TrainPass MakePass(const TrainBatch& batch, Scratch& scratch) {
    const int64_t rows = std::ssize(batch.ids);
    Check(rows > 0 && rows <= options_.max_tokens && std::ssize(batch.targets) == rows &&
              !batch.cu_seqlens.empty() && batch.cu_seqlens.back() == rows,
          "a training batch needs 1 to max_tokens ids, as many targets, and documents over them");
    TrainPass pass{.queue = queue_, .config = config_, .type = type_, .rows = rows};
    pass.cu_seqlens = OnDevice(batch.cu_seqlens, scratch);
    if (options_.capacity_factor > 0 && config_.num_experts > 0) {
      const auto even = static_cast<double>(rows * config_.num_experts_per_token) /
                        static_cast<double>(config_.num_experts);
      pass.capacity = static_cast<int64_t>(std::ceil(even * options_.capacity_factor));
    }
    if (config_.num_softmax_layers() > 0) {
      std::vector<int64_t> position;
      for (size_t n = 0; n + 1 < batch.cu_seqlens.size(); ++n) {
        for (int64_t t = batch.cu_seqlens[n]; t < batch.cu_seqlens[n + 1]; ++t) {
          position.push_back(t - batch.cu_seqlens[n]);
        }
      }
      pass.cos = scratch.GetRows(DType::kF32, rows, config_.rotary_dim / 2);
      pass.sin = scratch.GetRows(DType::kF32, rows, config_.rotary_dim / 2);
      RopeTable(queue_, OnDevice(position, scratch), config_.rope_theta, pass.cos, pass.sin);
    }
    layers_.clear();
    for (const KeptLayer& layer : kept_.layers) layers_.push_back(layer.Rows(rows));
    last_ = kept_.last.Rows(0, rows);
    return pass;
  }

  Tensor OnDevice(const std::vector<int64_t>& values, Scratch& scratch) {
    const int64_t n = std::ssize(values);
    const Tensor t(scratch.Get<int64_t>(n), {n});
    queue_.CopyToDevice(t.data, values.data(), n * SizeOf(DType::kI64));
    return t;
  }

  void Norm(const Tensor& x, const TrainTensor& weight, const Tensor& out) {
    AddNorm(
        queue_,
        {.x = x, .weight = weight.value, .eps = static_cast<float>(config_.norm_eps), .out = out});
  }

  const Residual& AttentionResidual(LayerKind kind) const {
    return kind == LayerKind::kLightning ? config_.lightning_residual : config_.softmax_residual;
  }

  // Gives the residual after a sub-layer whose input was x, the norm of `before`, and the norm of
  // that: next_x, which may be x. With DeepNorm (post_norm) the residual carries x, without it what
  // was normalised.
  AddNormArgs Next(const Residual& residual, const Tensor& before, const Tensor& x,
                   const Tensor& branch, const Tensor& after, const TrainTensor& weight,
                   const Tensor& next_x) const {
    return {.x = config_.post_norm ? x : before,
            .branch = branch,
            .alpha = static_cast<float>(residual.alpha),
            .beta = static_cast<float>(residual.beta),
            .weight = weight.value,
            .eps = static_cast<float>(config_.norm_eps),
            .sum = after,
            .out = next_x};
  }

  // Leaves the last norm in x [T, D].
  TrainLosses Forward(const TrainPass& pass, const TrainBatch& batch, Balance& balance,
                      const Tensor& x) {
    TrainLosses losses;
    Scratch scratch(queue_);
    const Tensor branch = scratch.GetRows(type_, pass.rows, config_.hidden_size);
    EmbedRows(queue_, batch.ids, parameters_.embedding.value, layers_[0].before_attention);
    // Norms go where they are kept, or all through the memory of the last one.
    const auto room = [&](const Tensor& kept) { return kept.empty() ? x : kept; };
    Norm(layers_[0].before_attention, parameters_.layers[0].input_norm,
         room(layers_[0].attention_x));
    for (size_t i = 0; i < layers_.size(); ++i) {
      const TrainLayer& layer = parameters_.layers[i];
      KeptLayer& kept = layers_[i];
      const Tensor attention_x = room(kept.attention_x), mlp_x = room(kept.mlp_x);
      if (layer.kind == LayerKind::kLightning) {
        LightningForward(pass, layer, kept, attention_x, branch);
      } else {
        SoftmaxForward(pass, layer, kept, attention_x, branch);
      }
      AddNorm(queue_, Next(AttentionResidual(layer.kind), kept.before_attention, attention_x,
                           branch, kept.before_mlp, layer.mlp_norm, mlp_x));
      const bool is_last = i + 1 == layers_.size();
      MlpForwardAddNorm(
          pass, layer, kept, mlp_x,
          Next(config_.mlp_residual, kept.before_mlp, mlp_x, branch,
               is_last ? last_ : layers_[i + 1].before_attention,
               is_last ? parameters_.final_norm : parameters_.layers[i + 1].input_norm,
               is_last ? x : room(layers_[i + 1].attention_x)));
      if (config_.num_experts == 0) continue;
      balance.AddLayer(kept.dispatch);
      losses.expert_rows.push_back(kept.dispatch.counts);
      losses.dropped_rows += kept.dispatch.dropped;
    }
    losses.auxiliary = balance.Loss();
    return losses;
  }

  // The product of the last norm, x, with the head, and its loss; with d_h the gradients as well.
  void Head(const TrainBatch& batch, double scale, const Tensor& x, const Tensor* d_h,
            TrainLosses& losses) {
    LinearCrossEntropyArgs args{.x = x,
                                .weight = parameters_.head.weight,
                                .targets = batch.targets,
                                .vocab_used = options_.vocab_used,
                                .scale = scale};
    if (d_h) {
      args.d_x = *d_h;
      args.d_weight = parameters_.head.gradient;
    }
    const CrossEntropy loss = LinearCrossEntropy(queue_, args);
    losses.cross_entropy = loss.sum;
    losses.counted = loss.counted;
    if (d_h) NormGradient(last_, parameters_.final_norm, *d_h, *d_h, {});
  }

  void NormGradient(const Tensor& x, const TrainTensor& weight, const Tensor& d_out,
                    const Tensor& d_x, const CarriedGradient& carried) {
    NormBackward(queue_, {.x = x,
                          .weight = weight.value,
                          .eps = static_cast<float>(config_.norm_eps),
                          .d_out = d_out,
                          .d_x = d_x,
                          .d_weight = weight.gradient,
                          .carried = carried});
  }

  // d_h, the gradient of the residual after a sub-layer, becomes that of the one before it.
  // branch(x, d_branch, d_x) takes the gradient through the sub-layer itself.
  template <typename Branch>
  void SubLayerBackward(const Tensor& before, const Tensor& kept_x, const TrainTensor& norm,
                        const Residual& residual, const Tensor& d_h, Branch&& branch) {
    Scratch scratch(queue_);
    Tensor x = kept_x;
    if (x.empty()) {
      x = scratch.GetRows(type_, before.dim(0), before.dim(1));
      Norm(before, norm, x);
    }
    const Tensor d_x = scratch.GetRows(type_, before.dim(0), before.dim(1));
    Tensor d_branch = d_h;
    if (residual.beta != 1.0) {
      d_branch = scratch.GetRows(type_, before.dim(0), before.dim(1));
      AddResidual(queue_, {.x = d_h,
                           .branch = d_h,
                           .alpha = static_cast<float>(residual.beta),
                           .beta = 0.0f,
                           .sum = d_branch});
    }
    branch(x, d_branch, d_x);
    NormGradient(
        before, norm, d_x, d_h,
        {.rows = d_h, .alpha = static_cast<float>(residual.alpha), .of_norm = config_.post_norm});
  }

  void Backward(const TrainPass& pass, const TrainBatch& batch, const Balance& balance,
                double balance_scale, const Tensor& d_h) {
    for (size_t i = layers_.size(); i-- > 0;) {
      const TrainLayer& layer = parameters_.layers[i];
      const KeptLayer& kept = layers_[i];
      SubLayerBackward(kept.before_mlp, kept.mlp_x, layer.mlp_norm, config_.mlp_residual, d_h,
                       [&](const Tensor& x, const Tensor& d_out, const Tensor& d_x) {
                         std::vector<double> weights;
                         if (config_.num_experts > 0) {
                           weights = balance.Weights(static_cast<int64_t>(i));
                         }
                         MlpBackwardBlock(pass, layer, kept,
                                          {.x = x,
                                           .d_out = d_out,
                                           .d_x = d_x,
                                           .balance = weights,
                                           .balance_scale = balance_scale});
                       });
      SubLayerBackward(kept.before_attention, kept.attention_x, layer.input_norm,
                       AttentionResidual(layer.kind), d_h,
                       [&](const Tensor& x, const Tensor& d_out, const Tensor& d_x) {
                         if (layer.kind == LayerKind::kLightning) {
                           LightningBackwardBlock(pass, layer, kept, x, d_out, d_x);
                         } else {
                           SoftmaxBackwardBlock(pass, layer, kept, x, d_out, d_x);
                         }
                       });
    }
    EmbedBackward(queue_, batch.ids, d_h, parameters_.embedding.gradient);
  }

  Queue& queue_;
  TextConfig config_;
  TrainOptions options_;
  DType type_;  // of activations and products
  TrainParameters parameters_;
  KeptMemory kept_;
  std::vector<KeptLayer> layers_;  // of the pass at hand
  Tensor last_;
};

}  // namespace

Result<std::unique_ptr<TrainerModel>> TrainerModel::Create(Queue& queue, const TextConfig& config,
                                                           const TrainOptions& options) {
  MM01_RETURN_IF_ERROR(config.Validate());
  if (config.shared_ffn_size > 0) {
    return Status::Unsupported(fmt::format(
        "the configuration has a shared expert of width {}, training is built without one",
        config.shared_ffn_size));
  }
  if (options.max_tokens < 1) {
    return Status::Invalid(fmt::format("max_tokens is {}, wanted at least 1", options.max_tokens));
  }
  if (options.vocab_used < 0 || options.vocab_used > config.vocab_size) {
    return Status::Invalid(fmt::format("vocab_used is {}, the model's vocabulary has {}",
                                       options.vocab_used, config.vocab_size));
  }
  return std::unique_ptr<TrainerModel>(std::make_unique<Trainer>(queue, config, options));
}

}  // namespace mm01
