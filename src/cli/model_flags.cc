#include "cli/model_flags.h"

#include <fmt/core.h>

#include <utility>
#include <vector>

#include "base/format.h"
#include "base/json.h"
#include "cli/progress.h"
#include "infer/machine.h"
#include "io/checkpoint.h"
#include "model/text01/tensor_names.h"

namespace mm01::cli {
namespace {

constexpr int64_t kDefaultGroup = 128;

std::string PlanText(const MemoryPlan& plan, Device device, int64_t context_tokens) {
  const std::string where =
      device == Device::kCuda ? FindCuda()->name : std::string("this machine");
  return fmt::format("memory planned for {} tokens of context, {} available on {}:\n{}",
                     FormatCount(context_tokens),
                     FormatByteCount(infer::AvailableMemoryBytes(device)), where, plan.ToTable());
}

Result<WeightType> StoredType(const std::string& model_dir) {
  MM01_ASSIGN_OR_RETURN(const TextConfig config, LoadTextConfig(model_dir));
  MM01_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(model_dir));
  std::vector<StoredTensor> stored;
  for (const CheckpointTensor& t : checkpoint.tensors()) {
    stored.push_back({t.info->name, t.info->dtype, t.info->shape});
  }
  MM01_ASSIGN_OR_RETURN(const TensorMap map, LocateTensors(config, stored, model_dir));
  return StoredWeightType(map);
}

int64_t KvBytes(infer::Engine& engine) {
  const int64_t used = engine.state().kv_bytes_used();
  return used > 0 ? used : engine.plan().kv;
}

}  // namespace

void AddModelArgument(Command& command, ModelFlags* flags) {
  command.Required("MODEL", &flags->model,
                   "folder with config.json, safetensors and tokenizer.json");
}

void AddDeviceFlag(Command& command, std::string* device) {
  command.Choice("--device", {"auto", "cpu", "cuda"}, device,
                 "where to compute; auto is the GPU where there is one of compute capability 9.0");
}

void AddThreadsFlag(Command& command, std::optional<int64_t>* threads) {
  command.Whole("--threads", "N", threads, kThreadLimits,
                "threads to compute with (default: the cores this process may use); results do "
                "not depend on it");
}

void AddQuietFlag(Command& command, bool* quiet) {
  command.Switch("--quiet", quiet, "no plan, progress or summary on standard error");
}

void AddModelFlags(Command& command, ModelFlags* flags, const std::string& default_context) {
  command.Section("Model");
  AddDeviceFlag(command, &flags->device);
  AddThreadsFlag(command, &flags->threads);
  command.Whole("--context", "N", &flags->context, kAtLeastOne,
                fmt::format("tokens that memory is kept for (default: {})", default_context));
  command.Choice("--weights", {"auto", "float32", "bf16", "int8"}, &flags->weights,
                 "what weights are kept as in memory; auto is as stored");
  command.Choice("--kv", {"auto", "float32", "bf16"}, &flags->kv,
                 "what the KV cache is kept as; auto is float32 beside float32 weights, else bf16");
  AddQuietFlag(command, &flags->quiet);
}

Result<Device> ChosenDevice(const std::string& device) {
  if (device == "cpu") return Device::kCpu;
  const Result<CudaInfo> gpu = FindCuda();
  if (gpu.ok()) return Device::kCuda;
  if (device == "auto") return Device::kCpu;
  return gpu.status();
}

std::optional<DType> KvType(const std::string& kv) {
  if (kv == "auto") return std::nullopt;
  return kv == "bf16" ? DType::kBF16 : DType::kF32;
}

Result<std::optional<WeightType>> ChosenWeights(const std::string& weights,
                                                const std::string& model_dir) {
  if (weights == "auto") return std::optional<WeightType>();
  if (weights == "float32") return std::optional(WeightType{DType::kF32, 0});
  if (weights == "bf16") return std::optional(WeightType{DType::kBF16, 0});
  MM01_ASSIGN_OR_RETURN(const WeightType stored, StoredType(model_dir));
  return std::optional(stored.dtype == DType::kI8 ? stored : WeightType{DType::kI8, kDefaultGroup});
}

Result<WeightType> WeightsInMemory(const std::string& weights, const std::string& model_dir) {
  MM01_ASSIGN_OR_RETURN(const auto chosen, ChosenWeights(weights, model_dir));
  if (chosen) return *chosen;
  return StoredType(model_dir);
}

Result<LoadedModel> LoadModel(const ModelFlags& flags, infer::EngineOptions options,
                              const Notes& notes) {
  MM01_ASSIGN_OR_RETURN(const auto weights, ChosenWeights(flags.weights, flags.model));
  if (weights) options.weights = weights;
  if (const auto kv = KvType(flags.kv)) options.kv = kv;
  MM01_ASSIGN_OR_RETURN(options.device, ChosenDevice(flags.device));
  if (flags.threads) options.num_threads = static_cast<int>(*flags.threads);
  if (flags.context) options.context_tokens = *flags.context;

  Progress progress(notes, "loading", Progress::Unit::kBytes);
  options.on_load = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  if (!options.on_plan) {
    options.on_plan = [&, context = options.context_tokens,
                       device = options.device](const MemoryPlan& plan) {
      notes.WriteFaint(PlanText(plan, device, context));
    };
  }
  MM01_ASSIGN_OR_RETURN(auto engine, infer::Engine::Load(flags.model, std::move(options)));
  return LoadedModel{std::move(engine), progress.seconds()};
}

std::string ToText(const WeightType& type) {
  if (type.group == 0) return ToString(type.dtype);
  return fmt::format("{} in groups of {}", ToString(type.dtype), type.group);
}

std::string MemoryText(infer::Engine& engine) {
  return fmt::format("weights {}, state {}, KV cache {}, peak resident {}",
                     FormatByteCount(engine.weights().bytes()),
                     FormatByteCount(engine.state().lightning_bytes()),
                     FormatByteCount(KvBytes(engine)), FormatByteCount(infer::PeakResidentBytes()));
}

Json MemoryJson(infer::Engine& engine) {
  return {{"weights_bytes", engine.weights().bytes()},
          {"state_bytes", engine.state().lightning_bytes()},
          {"kv_bytes", KvBytes(engine)},
          {"peak_resident_bytes", infer::PeakResidentBytes()}};
}

}  // namespace mm01::cli
