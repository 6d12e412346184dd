// mm01 inspect: what a model is and what it takes, before any of it is loaded.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <map>
#include <memory>

#include "base/format.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "io/checkpoint.h"
#include "model/text01/config.h"
#include "model/text01/tensor_names.h"
#include "planner/flops.h"
#include "planner/memory.h"

namespace mm01::cli {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kInspectedContext = 4096;

struct InspectFlags {
  ModelFlags model;
  bool tensors = false;
  bool json = false;
};

struct MemoryRow {
  WeightType weights;
  DType kv = DType::kF32;
  MemoryPlan plan;
};

// All that is printed.
struct Inspection {
  TextConfig config;
  std::vector<StoredTensor> tensors;  // of the checkpoint, or those that the configuration wants
  bool has_checkpoint = false;
  int64_t checkpoint_bytes = 0;
  int64_t num_files = 0;
  int64_t context = kInspectedContext;
  std::vector<MemoryRow> memory;
};

bool HasCheckpoint(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / "model.safetensors.index.json", ignored) ||
         fs::exists(folder / "model.safetensors", ignored);
}

// Something else than a folder or a config.json gets the error that says what is wanted.
Status CheckPath(const std::string& path) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  if (!fs::exists(status) || fs::is_directory(status)) return Status::Ok();
  if (fs::path(path).extension() == ".json") return Status::Ok();
  const Result<Checkpoint> checkpoint = Checkpoint::Open(path);
  if (!checkpoint.ok()) return checkpoint.status();
  return Status::Invalid(path + ": weights alone, wanted the model's folder or its config.json");
}

Status ReadTensors(const std::string& path, Inspection* found) {
  found->has_checkpoint = fs::is_directory(path) && HasCheckpoint(path);
  if (!found->has_checkpoint) {
    for (WantedTensor& t : WantedTensors(found->config)) {
      found->tensors.push_back({.name = std::move(t.name), .shape = std::move(t.shape)});
    }
    return Status::Ok();
  }
  MM01_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(path));
  for (const CheckpointTensor& t : checkpoint.tensors()) {
    found->tensors.push_back({t.info->name, t.info->dtype, t.info->shape});
  }
  found->checkpoint_bytes = checkpoint.total_bytes();
  found->num_files = static_cast<int64_t>(checkpoint.files().size());
  return LocateTensors(found->config, found->tensors, path).status();
}

Status PlanRows(const ModelFlags& flags, Inspection* found) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    if (flags.weights != "auto" && flags.weights != ToString(dtype)) continue;
    const WeightType weights{dtype, dtype == DType::kI8 ? 128 : 0};
    const DType kv = KvType(flags.kv).value_or(DefaultKvType(weights));
    MM01_ASSIGN_OR_RETURN(
        const MemoryPlan plan,
        PlanMemory(found->config,
                   {.weights = weights, .kv = kv, .context_tokens = found->context}));
    found->memory.push_back({weights, kv, plan});
  }
  return Status::Ok();
}

Result<Inspection> Inspect(const InspectFlags& flags) {
  const std::string& path = flags.model.model;
  MM01_RETURN_IF_ERROR(CheckPath(path));
  Inspection found;
  MM01_ASSIGN_OR_RETURN(found.config, LoadTextConfig(path));
  found.context = flags.model.context.value_or(kInspectedContext);
  MM01_RETURN_IF_ERROR(ReadTensors(path, &found));
  MM01_RETURN_IF_ERROR(PlanRows(flags.model, &found));
  return found;
}

std::string FfnText(const TextConfig& c) {
  std::string text = fmt::format("dense, width {}", c.ffn_size);
  if (c.num_experts > 0) {
    text = fmt::format("{} experts of width {}, {} a token", c.num_experts, c.ffn_size,
                       c.num_experts_per_token);
  }
  if (c.shared_ffn_size > 0) text += fmt::format(", and a shared one of {}", c.shared_ffn_size);
  return text;
}

// "412 float32, 24 bf16".
std::string TypesText(const std::vector<StoredTensor>& tensors) {
  std::map<std::string, int64_t> counts;
  for (const StoredTensor& t : tensors) ++counts[ToString(t.dtype)];
  std::vector<std::string> parts;
  for (const auto& [type, n] : counts) parts.push_back(fmt::format("{} {}", FormatCount(n), type));
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string TensorsText(const Inspection& found) {
  if (!found.has_checkpoint) {
    return fmt::format("{} wanted; there is no checkpoint here, the configuration alone",
                       FormatCount(static_cast<int64_t>(found.tensors.size())));
  }
  return fmt::format("{} in {} {}, {}: {}", FormatCount(static_cast<int64_t>(found.tensors.size())),
                     found.num_files, found.num_files == 1 ? "file" : "files",
                     FormatBytes(static_cast<double>(found.checkpoint_bytes)),
                     TypesText(found.tensors));
}

std::string ConfigTable(const Inspection& found) {
  const TextConfig& c = found.config;
  std::string text;
  const auto row = [&](const char* name, const std::string& value) {
    text += fmt::format("{:<12}{}\n", name, value);
  };
  const ParameterCount count = CountParameters(c);
  row("layers", fmt::format("{}: {} lightning, {} softmax", c.num_layers(),
                            c.num_lightning_layers(), c.num_softmax_layers()));
  row("hidden size", FormatCount(c.hidden_size));
  row("heads", fmt::format("{} of {}, {} kv heads in softmax layers", c.num_heads, c.head_dim,
                           c.num_kv_heads));
  row("FFN", FfnText(c));
  row("vocabulary", FormatCount(c.vocab_size));
  row("RoPE", fmt::format("{} of {} dims, base {:g}", c.rotary_dim, c.head_dim, c.rope_theta));
  if (c.max_positions > 0) row("positions", FormatCount(c.max_positions));
  row("parameters", fmt::format("{} in all, {} activated by a token (embedding and head apart)",
                                FormatCount(count.total), FormatCount(count.activated)));
  row("tensors", TensorsText(found));
  return text;
}

std::string MemoryTable(const Inspection& found) {
  std::string text = fmt::format(
      "\nmemory for {} tokens of context\n{:<10}{:<10}{:>14}{:>14}{:>14}{:>14}\n",
      FormatCount(found.context), "weights", "KV", "weights", "state", "KV cache", "total");
  const auto bytes = [](int64_t n) { return FormatBytes(static_cast<double>(n)); };
  for (const MemoryRow& r : found.memory) {
    text += fmt::format("{:<10}{:<10}{:>14}{:>14}{:>14}{:>14}\n", ToString(r.weights.dtype),
                        ToString(r.kv), bytes(r.plan.weights), bytes(r.plan.state),
                        bytes(r.plan.kv), bytes(r.plan.total()));
  }
  return text;
}

std::string TensorTable(const Inspection& found) {
  std::string text = "\n";
  for (const StoredTensor& t : found.tensors) {
    text += fmt::format("{:<72}{:<9} [{}]\n", t.name, found.has_checkpoint ? ToString(t.dtype) : "",
                        fmt::join(t.shape, ", "));
  }
  return text;
}

Json ToJson(const Inspection& found, bool with_tensors) {
  const ParameterCount count = CountParameters(found.config);
  Json memory = Json::array();
  for (const MemoryRow& r : found.memory) {
    memory.push_back({{"weights", ToString(r.weights.dtype)},
                      {"group", r.weights.group},
                      {"kv", ToString(r.kv)},
                      {"weights_bytes", r.plan.weights},
                      {"state_bytes", r.plan.state},
                      {"kv_bytes", r.plan.kv},
                      {"workspace_bytes", r.plan.workspace},
                      {"total_bytes", r.plan.total()}});
  }
  Json json = {{"config", mm01::ToJson(found.config)},
               {"parameters",
                {{"total", count.total},
                 {"activated", count.activated},
                 {"embedding", count.embedding},
                 {"lm_head", count.lm_head}}},
               {"context_tokens", found.context},
               {"memory", memory},
               {"has_checkpoint", found.has_checkpoint},
               {"num_tensors", found.tensors.size()}};
  if (found.has_checkpoint) json["checkpoint_bytes"] = found.checkpoint_bytes;
  if (!with_tensors) return json;
  for (const StoredTensor& t : found.tensors) {
    Json entry = {{"name", t.name}, {"shape", t.shape}};
    if (found.has_checkpoint) entry["dtype"] = ToString(t.dtype);
    json["tensors"].push_back(std::move(entry));
  }
  return json;
}

Result<int> RunInspect(const InspectFlags& flags) {
  MM01_ASSIGN_OR_RETURN(const Inspection found, Inspect(flags));
  if (flags.json) {
    Print(JsonText(ToJson(found, flags.tensors), 2) + "\n");
  } else {
    Print(ConfigTable(found) + MemoryTable(found) + (flags.tensors ? TensorTable(found) : ""));
  }
  return kExitOk;
}

}  // namespace

void AddInspect(CommandLine& line) {
  auto flags = std::make_shared<InspectFlags>();
  Command& command = line.Add(
      {"inspect",
       "Shows what a model is, and the memory it takes.",
       "Configuration, parameters in all and activated by a token, tensors, and bytes of weights, "
       "state and KV cache for a length of context. Reads headers alone; a config.json without "
       "weights is enough. Where there is a checkpoint, its tensors are checked against the "
       "configuration.",
       {"mm01 inspect models/nano", "mm01 inspect config.json --context 1000000 --weights int8"}});
  command.Required("MODEL", &flags->model.model, "a model's folder, or a config.json");
  command.Switch("--tensors", &flags->tensors, "list every tensor");
  command.Switch("--json", &flags->json, "one JSON object in place of the tables");
  AddModelFlags(command, &flags->model, std::to_string(kInspectedContext));
  command.Action([flags] {
    const Result<int> code = RunInspect(*flags);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
