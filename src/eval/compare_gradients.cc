#include "eval/compare_gradients.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "base/json.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "model/text01/tensor_names.h"

namespace mm01::eval {
namespace {

constexpr std::string_view kGradient = "grad.";

// What the reference's loss multiplies its auxiliary loss by; 0.001 is that library's default.
Result<double> AuxiliaryCoefficient(const std::string& model) {
  constexpr int64_t kMaxFileBytes = 16 << 20;
  const std::string path = (std::filesystem::path(model) / "config.json").string();
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  MM01_ASSIGN_OR_RETURN(const Json json, ParseJson(text, path));
  const auto found = json.find("router_aux_loss_coef");
  if (found == json.end()) return 0.001;
  if (!found->is_number()) {
    return Status::Invalid(
        fmt::format("{}: router_aux_loss_coef is {}, wanted a number", path, found->dump()));
  }
  return found->get<double>();
}

Result<std::unique_ptr<TrainerModel>> LoadTrainer(Queue& queue, const std::string& model,
                                                  const TextConfig& config, double coefficient,
                                                  int64_t tokens) {
  MM01_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(model));
  const TrainOptions options{.auxiliary_form = AuxiliaryForm::kTransformers,
                             .auxiliary_coefficient = coefficient,
                             .max_tokens = tokens,
                             .exact = true};
  MM01_ASSIGN_OR_RETURN(std::unique_ptr<TrainerModel> trainer,
                        TrainerModel::Create(queue, config, options));
  MM01_RETURN_IF_ERROR(trainer->Load(checkpoint));
  trainer->ParametersChanged();
  return trainer;
}

// Our numbers under the reference's names.
std::map<std::string, std::vector<float>> RunPass(Queue& queue, TrainerModel& trainer,
                                                  const Reference& r, double coefficient) {
  const std::vector<int32_t> ids(r.ids.begin(), r.ids.end());
  const auto targets = static_cast<double>(r.num_sequences * (r.length - 1));
  trainer.ZeroGradients();
  const TrainLosses losses =
      trainer.ForwardBackward(PackRows(ids, r.num_sequences), 1.0 / targets, 1.0);
  std::map<std::string, std::vector<float>> ours;
  for (auto& [name, values] : ByEveryName(queue, trainer, true)) {
    ours[std::string(kGradient) + name] = std::move(values);
  }
  const double loss = losses.cross_entropy / targets + coefficient * losses.auxiliary;
  ours["loss"] = {static_cast<float>(loss)};
  ours["aux_loss"] = {static_cast<float>(losses.auxiliary)};
  return ours;
}

}  // namespace

TrainBatch PackRows(std::span<const int32_t> ids, int64_t num_rows) {
  const int64_t total = std::ssize(ids), length = total / num_rows;
  Check(length * num_rows == total, "ids are not [N, T]");
  TrainBatch batch{.ids = {ids.begin(), ids.end()}, .cu_seqlens = {0}};
  for (int64_t i = 0; i < total; ++i) {
    const bool last = (i + 1) % length == 0;
    batch.targets.push_back(last ? -1 : ids[static_cast<size_t>(i + 1)]);
    if (last) batch.cu_seqlens.push_back(i + 1);
  }
  return batch;
}

std::map<std::string, std::vector<float>> ByEveryName(Queue& queue, const TrainerModel& model,
                                                      bool gradients) {
  const std::vector<WantedTensor> wanted = WantedTensors(model.config());
  std::map<std::string, std::vector<float>> all;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const TrainParameter& p = model.parameters()[i];
    const Tensor& tensor = gradients ? p.gradient : p.value;
    std::vector<float> values(static_cast<size_t>(tensor.size()));
    queue.CopyToHost(values.data(), tensor.data, tensor.size() * SizeOf(DType::kF32));
    for (const TensorSource& source : wanted[i].sources) {
      int64_t size = 1;
      for (const int64_t n : source.shape) size *= n;
      std::vector<float>& room = all[source.name];
      room.resize(static_cast<size_t>(size));
      std::ranges::copy(values, room.begin() + source.first_row * source.shape.back());
    }
  }
  return all;
}

Result<CompareReport> CompareGradients(Queue& queue, const std::string& model,
                                       const std::string& reference, double tolerance) {
  MM01_ASSIGN_OR_RETURN(const TextConfig config, LoadTextConfig(model));
  MM01_ASSIGN_OR_RETURN(const Reference r, OpenReference(reference, config));
  if (r.length < 2) {
    return Status::Invalid(
        fmt::format("{}: input_ids has rows of {} token, wanted 2 or more", reference, r.length));
  }
  MM01_ASSIGN_OR_RETURN(const double coefficient, AuxiliaryCoefficient(model));
  MM01_ASSIGN_OR_RETURN(const std::unique_ptr<TrainerModel> trainer,
                        LoadTrainer(queue, model, config, coefficient, std::ssize(r.ids)));
  const auto ours = RunPass(queue, *trainer, r, coefficient);

  CompareReport report;
  for (const TensorInfo& info : r.file.tensors()) {
    if (info.name == "input_ids") continue;
    const auto found = ours.find(info.name);
    if (found == ours.end()) {
      report.not_compared.push_back(info.name);
      continue;
    }
    MM01_ASSIGN_OR_RETURN(const std::vector<float> theirs, r.file.ReadAll<float>(info));
    if (theirs.size() != found->second.size()) {
      return Status::Invalid(fmt::format("{}: {} has {} values, the model gives {}", reference,
                                         info.name, theirs.size(), found->second.size()));
    }
    report.tensors.push_back(Differ(info.name, found->second, theirs, tolerance));
  }
  if (report.tensors.empty()) {
    return Status::Invalid(reference + ": wanted loss, aux_loss or grad.NAME, found none of them");
  }
  // The losses come first.
  std::ranges::stable_sort(report.tensors, {}, [](const Comparison& c) {
    return std::pair(c.name.starts_with(kGradient), c.name);
  });
  report.Judge();
  return report;
}

}  // namespace mm01::eval
