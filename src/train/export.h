// Weights of a model in training, in the published layout: model.safetensors, config.json and the
// tokenizer's files, which `mm01 generate` and the transformers library read.
//
// Errors    Io. Each file appears whole or not at all; config.json comes last.
#pragma once

#include <string>

#include "base/status.h"
#include "device/queue.h"
#include "model/text01/trainer_model.h"

namespace mm01::train {

struct ExportOptions {
  std::string folder;
  std::string tokenizer;      // the folder whose tokenizer files are copied, or a tokenizer.json
  DType type = DType::kBF16;  // or kF32
  double auxiliary_coefficient = 0;
};

Status ExportModel(Queue& queue, const TrainerModel& model, const ExportOptions& options);

}  // namespace mm01::train
