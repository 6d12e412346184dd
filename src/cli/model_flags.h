// The flags of every command that loads a model, and the loading itself.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/json_fwd.h"
#include "base/status.h"
#include "cli/command_line.h"
#include "cli/console.h"
#include "infer/engine.h"

namespace mm01::cli {

struct ModelFlags {
  std::string model;
  std::string device = "auto";
  std::optional<int64_t> threads;
  std::optional<int64_t> context;
  std::string weights = "auto";
  std::string kv = "auto";
  bool quiet = false;
};

inline constexpr Limits<int64_t> kThreadLimits{1, 1024};
inline constexpr Limits<int64_t> kAtLeastOne{1, int64_t{1} << 40};
inline constexpr Limits<int64_t> kAtLeastZero{0, int64_t{1} << 40};

// MODEL as the first argument.
void AddModelArgument(Command& command, ModelFlags* flags);
// --device, --threads, --context, --weights, --kv, --quiet. `default_context` is a phrase for help.
void AddModelFlags(Command& command, ModelFlags* flags, const std::string& default_context);
void AddDeviceFlag(Command& command, std::string* device);
void AddThreadsFlag(Command& command, std::optional<int64_t>* threads);
void AddQuietFlag(Command& command, bool* quiet);

// Of --device: auto is the GPU where there is one that the program can use. Unsupported where cuda
// was asked for and is not there.
Result<Device> ChosenDevice(const std::string& device);
// Of --kv; nothing for auto.
std::optional<DType> KvType(const std::string& kv);
// Of --weights for the model at `model_dir`; nothing for auto. int8 has the groups of the
// checkpoint where that is int8 already, else groups of 128.
Result<std::optional<WeightType>> ChosenWeights(const std::string& weights,
                                                const std::string& model_dir);

// The same, and for auto the type of the checkpoint.
Result<WeightType> WeightsInMemory(const std::string& weights, const std::string& model_dir);

struct LoadedModel {
  std::unique_ptr<infer::Engine> engine;
  double seconds = 0.0;
};

// Loads a model, with the plan and a progress bar in the notes. Flags that are given win over
// `defaults`, which may hold types, the context, and an on_plan in place of the note.
Result<LoadedModel> LoadModel(const ModelFlags& flags, infer::EngineOptions defaults,
                              const Notes& notes);

// "bf16", "int8 in groups of 128".
std::string ToText(const WeightType& type);
// Bytes of weights, state and KV cache (in use, or planned while no sequence is open), and the peak
// of the process.
std::string MemoryText(infer::Engine& engine);
Json MemoryJson(infer::Engine& engine);

}  // namespace mm01::cli
