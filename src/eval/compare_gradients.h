// A training pass against numbers that another implementation computed.
//
// The reference is a safetensors file with input_ids [N, T], each row a document whose every token
// but the first is a target, and any of these, float32:
//   loss        mean cross entropy over the N (T - 1) targets, and the auxiliary loss times the
//               configuration's router_aux_loss_coef
//   aux_loss    the auxiliary loss in the transformers library's form
//   grad.NAME   the gradient of `loss` by parameter NAME, in any of the names that a checkpoint may
//               use for it (model/text01/tensor_names.h), fused experts included
// Other tensors are listed as not compared.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/queue.h"
#include "eval/reference.h"
#include "model/text01/trainer_model.h"

namespace mm01::eval {

// `model` is a folder with config.json and safetensors. Weights are float32.
// Errors: those of loading, a configuration that cannot be trained, shapes that do not fit, and a
// reference with nothing to compare.
Result<CompareReport> CompareGradients(Queue& queue, const std::string& model,
                                       const std::string& reference, double tolerance);

// The documents of [N, T] ids end to end, targets being the next tokens.
TrainBatch PackRows(std::span<const int32_t> ids, int64_t num_rows);

// Parameters, or their gradients, under every name that a checkpoint may use for them.
std::map<std::string, std::vector<float>> ByEveryName(Queue& queue, const TrainerModel& model,
                                                      bool gradients);

}  // namespace mm01::eval
