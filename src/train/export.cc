#include "train/export.h"

#include <fmt/core.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "base/json.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "train/optimizer.h"

namespace mm01::train {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxCopiedBytes = 256 << 20;
constexpr const char* kCopied[] = {"tokenizer.json",          "tokenizer_config.json",
                                   "special_tokens_map.json", "added_tokens.json",
                                   "generation_config.json",  "chat_template.jinja"};

Status CopyTokenizer(const ExportOptions& options) {
  const fs::path from = options.tokenizer.ends_with(".json")
                            ? fs::path(options.tokenizer).parent_path()
                            : fs::path(options.tokenizer);
  for (const char* name : kCopied) {
    std::error_code error;
    if (!fs::exists(from / name, error)) continue;
    MM01_ASSIGN_OR_RETURN(const std::string text,
                          ReadFile((from / name).string(), kMaxCopiedBytes));
    MM01_RETURN_IF_ERROR(WriteFileAtomically(options.folder + "/" + name, text));
  }
  return Status::Ok();
}

Status WriteWeights(Queue& queue, const TrainerModel& model, const ExportOptions& options) {
  std::vector<TensorInfo> infos;
  for (const TrainParameter& p : model.parameters()) {
    const auto begin = p.value.shape.begin();
    infos.push_back(
        {.name = p.name, .dtype = options.type, .shape = {begin, begin + p.value.rank}});
  }
  MM01_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                        SafetensorsWriter::Create(options.folder + "/model.safetensors",
                                                  std::move(infos), {{"format", "pt"}}));
  for (const TrainParameter& p : model.parameters()) {
    Status status;
    OnHost(queue, Flat(p.value, 0, p.value.size()), [&](std::span<float> values) {
      if (options.type == DType::kF32) {
        status = writer.Append(std::as_bytes(values));
        return;
      }
      std::vector<bf16> rounded;
      rounded.reserve(values.size());
      for (const float x : values) rounded.push_back(ToBF16(x));
      status = writer.Append(std::as_bytes(std::span(rounded)));
    });
    MM01_RETURN_IF_ERROR(status);
  }
  return writer.Finish();
}

}  // namespace

Status ExportModel(Queue& queue, const TrainerModel& model, const ExportOptions& options) {
  std::error_code error;
  fs::create_directories(options.folder, error);
  if (error) {
    return Status::Io(fmt::format("{}: cannot create: {}", options.folder, error.message()));
  }
  MM01_RETURN_IF_ERROR(WriteWeights(queue, model, options));
  MM01_RETURN_IF_ERROR(CopyTokenizer(options));
  Json config = ToJson(model.config());
  config["torch_dtype"] = options.type == DType::kF32 ? "float32" : "bfloat16";
  config["router_aux_loss_coef"] = options.auxiliary_coefficient;
  return WriteFileAtomically(options.folder + "/config.json", JsonText(config, 1) + "\n");
}

}  // namespace mm01::train
