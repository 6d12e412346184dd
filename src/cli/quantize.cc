// mm01 quantize: writes a checkpoint in another type.
#include "model/text01/quantize.h"

#include <fmt/core.h>

#include <memory>

#include "base/format.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/progress.h"
#include "infer/machine.h"

namespace mm01::cli {
namespace {

struct QuantizeFlags {
  std::string model, out;
  std::string weights = "int8";
  std::string group = "128";
  int64_t shard_bytes = int64_t{4} << 30;
  std::optional<int64_t> threads;
  bool quiet = false;
};

WeightType TypeOf(const QuantizeFlags& flags) {
  if (flags.weights == "float32") return {DType::kF32, 0};
  if (flags.weights == "bf16") return {DType::kBF16, 0};
  return {DType::kI8, std::stoll(flags.group)};
}

Result<int> RunQuantize(const QuantizeFlags& flags) {
  const Notes notes(flags.quiet);
  const InterruptScope interrupt;
  Progress progress(notes, "writing", Progress::Unit::kBytes);
  Queue queue(flags.threads ? static_cast<int>(*flags.threads) : infer::AvailableCores());
  MM01_ASSIGN_OR_RETURN(const ConvertReport report,
                        ConvertCheckpoint(queue, flags.model, flags.out,
                                          {.type = TypeOf(flags),
                                           .shard_bytes = flags.shard_bytes,
                                           .progress = [&](int64_t done, int64_t total) {
                                             progress.Update(done, total);
                                             return !InterruptScope::requested();
                                           }}));
  Print(fmt::format("{}: {} tensors, {} ({} bytes) in {} {}, weights {}\n", flags.out,
                    FormatCount(report.num_tensors), FormatBytes(static_cast<double>(report.bytes)),
                    FormatCount(report.bytes), report.num_files,
                    report.num_files == 1 ? "file" : "files", ToText(TypeOf(flags))));
  return kExitOk;
}

}  // namespace

void AddQuantize(CommandLine& line) {
  auto flags = std::make_shared<QuantizeFlags>();
  Command& command = line.Add(
      {"quantize",
       "Writes a checkpoint with its weights in another type.",
       "Projections, experts, embedding and head become int8 with one bf16 scale for each group "
       "of neighbours, or bf16 or float32; routers and norms stay as they are. Tensors get the "
       "names of the original checkpoint; configuration, tokenizer and chat template are copied. "
       "Memory use does not grow with the model. After an error or Ctrl-C nothing is left behind.",
       {"mm01 quantize models/big models/big-int8",
        "mm01 quantize models/big models/big-bf16 --weights bf16"}});
  command.Required("MODEL", &flags->model, "folder with config.json and safetensors");
  command.Required("OUT", &flags->out, "folder to write, new or empty");
  command.Choice("--weights", {"int8", "bf16", "float32"}, &flags->weights,
                 "what the weights become");
  command.Choice("--group", {"32", "64", "128"}, &flags->group,
                 "for int8, how many neighbours share a scale: fewer are more exact and larger");
  command.Whole("--shard-bytes", "N", &flags->shard_bytes, kAtLeastOne,
                "most bytes of tensors in one file");
  AddThreadsFlag(command, &flags->threads);
  AddQuietFlag(command, &flags->quiet);
  command.Action([flags] {
    const Result<int> code = RunQuantize(*flags);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
