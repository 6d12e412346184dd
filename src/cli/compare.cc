// mm01 compare: a model against numbers that another implementation computed.
#include "eval/compare.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>

#include "base/format.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "eval/compare_gradients.h"
#include "io/safetensors.h"

namespace mm01::cli {
namespace {

struct CompareFlags {
  ModelFlags model;
  std::string reference;
  double tolerance = 1e-5;
  bool gradients = false;
  bool json = false;
};

// Tokens that the longest run over the reference needs.
Result<int64_t> ContextOf(const std::string& reference) {
  MM01_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(reference));
  int64_t input = 1, more = 0;
  for (const TensorInfo& t : file.tensors()) {
    if (t.shape.empty()) continue;
    if (t.name == "input_ids") input = std::max(input, t.shape.back());
    if (t.name == "generated" || t.name == "greedy_from_200") more = std::max(more, t.shape.back());
  }
  return input + more;
}

std::string Row(const eval::Comparison& c, size_t width) {
  const std::string error =
      c.exact ? fmt::format("{} unequal", c.num_unequal) : fmt::format("{:.2e}", c.relative_error);
  const std::string largest = c.exact ? "" : fmt::format("{:.2e}", c.largest_difference);
  return fmt::format("{:<{}}{:>14}{:>16}{:>20}  {}\n", c.name, width, FormatCount(c.num_values),
                     error, largest, c.ok ? "ok" : "DEVIATES");
}

std::string Table(const eval::CompareReport& report, double tolerance) {
  size_t width = 18;
  for (const eval::Comparison& c : report.tensors) width = std::max(width, c.name.size());
  std::string text = fmt::format("{:<{}}{:>14}{:>16}{:>20}\n", "tensor", width, "values",
                                 "relative error", "largest difference");
  for (const eval::Comparison& c : report.tensors) text += Row(c, width);
  if (!report.not_compared.empty()) {
    const auto shown = std::min<size_t>(report.not_compared.size(), 8);
    const std::vector<std::string> names(report.not_compared.begin(),
                                         report.not_compared.begin() + static_cast<long>(shown));
    const size_t others = report.not_compared.size() - shown;
    text += fmt::format("not compared: {}{}\n", fmt::join(names, ", "),
                        others ? fmt::format(" and {} more", others) : "");
  }
  if (report.mean_nll > 0.0) text += fmt::format("mean nll {:.5f} nats a token\n", report.mean_nll);
  return text + (report.ok() ? fmt::format("all within {:g}\n", tolerance)
                             : fmt::format("first to deviate by more than {:g}: {}\n", tolerance,
                                           report.first_deviating));
}

Json ToJson(const eval::CompareReport& report, double tolerance) {
  Json tensors = Json::array();
  for (const eval::Comparison& c : report.tensors) {
    Json entry = {{"name", c.name}, {"values", c.num_values}, {"ok", c.ok}};
    if (c.exact) {
      entry["unequal"] = c.num_unequal;
    } else {
      entry["relative_error"] = c.relative_error;
      entry["largest_difference"] = c.largest_difference;
    }
    tensors.push_back(std::move(entry));
  }
  Json json = {{"ok", report.ok()},
               {"tolerance", tolerance},
               {"tensors", tensors},
               {"not_compared", report.not_compared}};
  if (!report.ok()) json["first_deviating"] = report.first_deviating;
  if (report.mean_nll > 0.0) json["mean_nll"] = report.mean_nll;
  return json;
}

Result<eval::CompareReport> ComparePass(const CompareFlags& flags) {
  MM01_ASSIGN_OR_RETURN(const Device device, ChosenDevice(flags.model.device));
  const int64_t threads = flags.model.threads.value_or(infer::AvailableCores());
  Queue queue(static_cast<int>(threads), device);
  return eval::CompareGradients(queue, flags.model.model, flags.reference, flags.tolerance);
}

Result<eval::CompareReport> CompareOutputs(const CompareFlags& flags) {
  const Notes notes(flags.model.quiet);
  MM01_ASSIGN_OR_RETURN(const int64_t context, ContextOf(flags.reference));
  MM01_ASSIGN_OR_RETURN(const LoadedModel model, LoadModel(flags.model,
                                                           {.weights = WeightType{DType::kF32, 0},
                                                            .kv = DType::kF32,
                                                            .context_tokens = context},
                                                           notes));
  return eval::Compare(*model.engine, flags.reference, flags.tolerance);
}

Result<int> RunCompare(const CompareFlags& flags) {
  MM01_ASSIGN_OR_RETURN(const eval::CompareReport report,
                        flags.gradients ? ComparePass(flags) : CompareOutputs(flags));
  Print(flags.json ? JsonText(ToJson(report, flags.tolerance), 2) + "\n"
                   : Table(report, flags.tolerance));
  return report.ok() ? kExitOk : kExitFailed;
}

}  // namespace

void AddCompare(CommandLine& line) {
  auto flags = std::make_shared<CompareFlags>();
  Command& command = line.Add(
      {"compare",
       "Compares a model with what another implementation computed.",
       "Runs the input_ids of the reference and compares every tensor that it has: logits, "
       "hidden.i, router.i, top_values, top_ids, logsumexp, nll, generated, greedy_from_200. The "
       "relative error is the 2-norm of the difference over the 2-norm of the reference; ids and "
       "tokens must be equal. Exit code 1 where something is beyond the tolerance; the first "
       "layer that deviates is named. Weights and KV cache are float32 unless --weights or --kv "
       "is given. With --gradients it runs a training pass in float32 and compares loss, aux_loss "
       "and every grad.NAME.",
       {"mm01 compare models/nano reference.safetensors",
        "mm01 compare models/nano reference.safetensors --weights int8 --tolerance 0.05"}});
  AddModelArgument(command, &flags->model);
  command.Required("REFERENCE", &flags->reference, "safetensors file with input_ids and results");
  command.Real("--tolerance", "X", &flags->tolerance, {0.0, 1e9},
               "largest relative error that passes");
  command.Switch("--gradients", &flags->gradients, "compare a training pass and its gradients");
  command.Switch("--json", &flags->json, "one JSON object in place of the table");
  AddModelFlags(command, &flags->model, "what the reference needs");
  command.Action([flags] {
    const Result<int> code = RunCompare(*flags);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
