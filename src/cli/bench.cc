// mm01 bench: how near the program comes to what the machine can do.
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <memory>

#include "base/format.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/model_flags.h"
#include "eval/bench_cpu.h"
#ifdef MM01_CUDA
#include "eval/bench_gpu/bench_gpu.h"
#endif
#include "io/file.h"

namespace mm01::cli {
namespace {

struct BenchFlags {
  std::string device;
  std::optional<int64_t> threads;
  std::optional<std::string> model;
  std::optional<std::string> json;
  std::optional<std::string> commit;
  std::optional<std::string> sources;
  std::vector<std::string> parts;
  bool brief = false;
};

std::string Today() {
  return fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::time(nullptr)));
}

std::string Row(const eval::BenchLine& line) {
  std::string row = fmt::format("{:<36}{:>10.2f} {:<9}", line.name, line.value, line.unit);
  if (line.ceiling > 0.0) {
    row += fmt::format("{:>7.1f} % of {:.2f}, {}", 100.0 * line.share(), line.ceiling, line.of);
  }
  return row + "\n";
}

Json ToJson(const eval::BenchReport& report, const BenchFlags& flags) {
  Json lines = Json::array();
  for (const eval::BenchLine& l : report.lines) {
    Json entry = {{"name", l.name}, {"value", l.value}, {"unit", l.unit}};
    if (l.ceiling > 0.0) {
      entry["ceiling"] = l.ceiling;
      entry["ceiling_of"] = l.of;
      entry["share"] = l.share();
    }
    lines.push_back(std::move(entry));
  }
  Json json = {{"device", report.cpu}, {"threads", report.num_threads}, {"date", Today()}};
  if (flags.commit) json["commit"] = *flags.commit;
  json["parameters"] = report.parameters;
  json["results"] = lines;
  return json;
}

#ifdef MM01_CUDA
Json ToJson(const gpu::Report& report, const BenchFlags& flags) {
  Json rows = Json::array();
  for (const gpu::Row& r : report.rows) {
    Json row = {{"name", r.name}, {"value", r.value}, {"unit", r.unit}};
    if (r.ceiling > 0) {
      row["ceiling"] = r.ceiling;
      row["share"] = r.share;
    }
    rows.push_back(std::move(row));
  }
  return {{"commit", flags.commit.value_or("")},
          {"cuda_sources_sha256", flags.sources.value_or("")},
          {"device", report.device},
          {"date", Today()},
          {"rows", rows}};
}

Result<int> RunGpuBench(const BenchFlags& flags) {
  const gpu::Options options{.parts = flags.parts, .model = flags.model.value_or("")};
  MM01_ASSIGN_OR_RETURN(const gpu::Report report,
                        gpu::Bench(options, [](const std::string& line) { Print(line + "\n"); }));
  if (flags.json) {
    MM01_RETURN_IF_ERROR(WriteFileAtomically(*flags.json, ToJson(report, flags).dump(2) + "\n"));
  }
  return kExitOk;
}
#else
Result<int> RunGpuBench(const BenchFlags&) {
  return FindCuda().status();
}
#endif

Result<int> RunBench(const BenchFlags& flags) {
  if (flags.device == "gpu") return RunGpuBench(flags);
  if (flags.device != "cpu") {
    return Status::Unsupported("there is no bench of '" + flags.device + "', wanted: cpu or gpu");
  }
  const eval::BenchOptions options{.num_threads = static_cast<int>(flags.threads.value_or(0)),
                                   .context_model = flags.model.value_or(""),
                                   .brief = flags.brief};
  MM01_ASSIGN_OR_RETURN(const eval::BenchReport report,
                        eval::BenchCpu(options, [](const eval::BenchLine& l) { Print(Row(l)); }));
  Print(fmt::format("{}, {} threads; random model of {} parameters\n", report.cpu,
                    report.num_threads, FormatCount(report.parameters)));
  if (flags.json) {
    MM01_RETURN_IF_ERROR(WriteFileAtomically(*flags.json, ToJson(report, flags).dump(2) + "\n"));
  }
  return kExitOk;
}

}  // namespace

void AddBench(CommandLine& line) {
  auto flags = std::make_shared<BenchFlags>();
  Command& command = line.Add(
      {"bench",
       "Measures speed against what the machine can do.",
       "A random model of 1.7 billion parameters (8 experts, top-2; needs 8 GB) reads 2,048 tokens "
       "in float32, held against the fastest GEMM library that the machine has, and writes tokens "
       "in bf16 and int8, held against the bandwidth of reading memory. With --model, a token of "
       "that model at 1,000 and at 100,000 tokens of context. Ceilings are measured in the same "
       "run, and every answer is checked before it is timed. On a GPU every op and a block of "
       "eight layers at Text-01's shapes is measured, with --model also a small model's tokens a "
       "second.",
       {"mm01 bench cpu", "mm01 bench gpu --part lightning --part moe",
        "mm01 bench cpu --model models/nano --json bench.json"}});
  command.Required("DEVICE", &flags->device, "cpu or gpu");
  AddThreadsFlag(command, &flags->threads);
  command.Text("--model", "DIR", &flags->model, "a model for the part on context");
  command.Text("--json", "FILE", &flags->json, "write the figures to FILE as well");
  command.Text("--commit", "ID", &flags->commit, "name of the code measured, for the JSON file");
  command.Text("--sources", "SHA256", &flags->sources, "hash of the CUDA sources, likewise");
  command.Texts("--part", "NAME", &flags->parts,
                "of the GPU's bench: lightning, lightning_backward, attention, moe, dense, "
                "block, train_layers or train; may be given again (default: all)");
  command.Switch("--brief", &flags->brief, "a model of a few million parameters: does all run?");
  command.Action([flags] {
    const Result<int> code = RunBench(*flags);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
