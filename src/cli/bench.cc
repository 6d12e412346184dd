// mm01 bench: how near the program comes to what the machine can do.
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <memory>
#include <utility>

#include "base/format.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/model_flags.h"
#include "cli/serve_plan.h"
#include "eval/bench_cpu.h"
#include "eval/bench_serve.h"
#ifdef MM01_CUDA
#include "cli/receipt.h"
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
  // Of the server's bench.
  std::string server_device = "auto";
  std::optional<int64_t> document;
  std::optional<int64_t> streams;
  std::optional<std::string> snapshot_dir;
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

Json LinesJson(const std::vector<eval::BenchLine>& all) {
  Json lines = Json::array();
  for (const eval::BenchLine& l : all) {
    Json entry = {{"name", l.name}, {"value", l.value}, {"unit", l.unit}};
    if (l.ceiling > 0.0) {
      entry["ceiling"] = l.ceiling;
      entry["ceiling_of"] = l.of;
      entry["share"] = l.share();
    }
    lines.push_back(std::move(entry));
  }
  return lines;
}

Json ToJson(const eval::BenchReport& report, const BenchFlags& flags) {
  Json json = {{"device", report.cpu}, {"threads", report.num_threads}, {"date", Today()}};
  if (flags.commit) json["commit"] = *flags.commit;
  json["parameters"] = report.parameters;
  json["results"] = LinesJson(report.lines);
  return json;
}

constexpr const char* kSmallModel = "models/nano";

#ifdef MM01_CUDA
constexpr const char* kReceipt = "docs/measured/gpu.json";
// Of a small model, left out where there is none.
constexpr const char* kModelRows[] = {"nano_prefill_tokens_s", "nano_decode_tokens_s_b1",
                                      "nano_decode_tokens_s_b16", "nano_decode_tokens_s_b256"};

Json ToJson(const gpu::Report& report, const BenchFlags& flags, bool with_model) {
  Json rows = Json::array();
  for (const gpu::Row& r : report.rows) {
    Json row = {{"name", r.name}, {"value", r.value}, {"unit", r.unit}};
    if (r.ceiling > 0) {
      row["ceiling"] = r.ceiling;
      row["share"] = r.share;
    }
    rows.push_back(std::move(row));
  }
  Json json = {{"commit", flags.commit.value_or(kBuiltCommit)},
               {"cuda_sources_sha256", flags.sources.value_or(kBuiltCudaSources)},
               {"device", report.device},
               {"date", Today()},
               {"rows", rows}};
  if (!with_model) json["skipped"] = kModelRows;
  return json;
}

// The file that gets the figures: the one named, or the receipt where all parts ran in the source's
// folder.
std::optional<std::string> ReceiptOf(const BenchFlags& flags) {
  if (flags.json || !flags.parts.empty()) return flags.json;
  if (std::filesystem::is_directory(std::filesystem::path(kReceipt).parent_path())) return kReceipt;
  return std::nullopt;
}

Result<int> RunGpuBench(const BenchFlags& flags) {
  std::string model = flags.model.value_or(flags.parts.empty() ? kSmallModel : "");
  const bool has_model = std::filesystem::exists(std::filesystem::path(model) / "config.json");
  if (!has_model && !model.empty()) {
    Print(fmt::format("{} ... SKIPPED: {}/config.json is not there, --model DIR names another\n",
                      fmt::join(kModelRows, ", "), model));
  }
  if (!has_model) model.clear();
  MM01_ASSIGN_OR_RETURN(const gpu::Report report,
                        gpu::Bench({.parts = flags.parts, .model = model},
                                   [](const std::string& line) { Print(line + "\n"); }));
  if (const auto path = ReceiptOf(flags)) {
    MM01_RETURN_IF_ERROR(
        WriteFileAtomically(*path, JsonText(ToJson(report, flags, has_model), 2) + "\n"));
    Print("written to " + *path + "\n");
  }
  return kExitOk;
}
#else
Result<int> RunGpuBench(const BenchFlags&) {
  return FindCuda().status();
}
#endif

// A folder of its own for as long as it lives.
class OwnFolder {
 public:
  static Result<OwnFolder> Make(const std::string& parent) {
    std::string path = parent + "/mm01-bench-XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) {
      return Status::Io(parent + ": no folder can be made in it for snapshots");
    }
    return OwnFolder(std::move(path));
  }
  OwnFolder(OwnFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  OwnFolder& operator=(OwnFolder&&) = delete;
  ~OwnFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  explicit OwnFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

Result<int> RunServeBench(const BenchFlags& flags) {
  MM01_ASSIGN_OR_RETURN(const Device device, ChosenDevice(flags.server_device));
  const bool on_gpu = device == Device::kCuda;
  MM01_ASSIGN_OR_RETURN(const OwnFolder folder,
                        OwnFolder::Make(flags.snapshot_dir.value_or(
                            std::filesystem::temp_directory_path().string())));
  const eval::ServeBenchOptions options{
      .model = flags.model.value_or(kSmallModel),
      .folder = folder.path(),
      .device = device,
      .num_threads = static_cast<int>(flags.threads.value_or(0)),
      .document_tokens = flags.document.value_or(on_gpu ? 1'048'576 : 32'768),
      .step_rows = ServeStepRows(device),
      .num_streams = flags.streams.value_or(on_gpu ? 64 : 8),
      .text01_streams = on_gpu && !flags.brief};
  MM01_ASSIGN_OR_RETURN(const auto lines,
                        eval::BenchServe(options, [](const eval::BenchLine& l) { Print(Row(l)); }));
  if (flags.json) {
    const Json json = {{"device", on_gpu ? FindCuda()->name : "cpu"},
                       {"date", Today()},
                       {"commit", flags.commit.value_or("")},
                       {"document_tokens", options.document_tokens},
                       {"results", LinesJson(lines)}};
    MM01_RETURN_IF_ERROR(WriteFileAtomically(*flags.json, JsonText(json, 2) + "\n"));
  }
  return kExitOk;
}

Result<int> RunBench(const BenchFlags& flags) {
  if (flags.device == "gpu") return RunGpuBench(flags);
  if (flags.device == "serve") return RunServeBench(flags);
  if (flags.device != "cpu") {
    return Status::Unsupported("there is no bench of '" + flags.device +
                               "', wanted: cpu, gpu or serve");
  }
  const eval::BenchOptions options{.num_threads = static_cast<int>(flags.threads.value_or(0)),
                                   .context_model = flags.model.value_or(""),
                                   .brief = flags.brief};
  MM01_ASSIGN_OR_RETURN(const eval::BenchReport report,
                        eval::BenchCpu(options, [](const eval::BenchLine& l) { Print(Row(l)); }));
  Print(fmt::format("{}, {} threads; random model of {} parameters\n", report.cpu,
                    report.num_threads, FormatCount(report.parameters)));
  if (flags.json) {
    MM01_RETURN_IF_ERROR(
        WriteFileAtomically(*flags.json, JsonText(ToJson(report, flags), 2) + "\n"));
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
       "second, and the figures go to docs/measured/gpu.json where that folder is.\n\n"
       "serve is what users of a server wait for: a question on a long document, a second one, an "
       "edit at 75 %, a reader who goes at 60 % and comes again, a restart from files, another "
       "stream beside all that, and many streams at once.",
       {"mm01 bench cpu", "mm01 bench gpu --part lightning --part moe",
        "mm01 bench cpu --model models/nano --json bench.json",
        "mm01 bench serve --model models/nano --document 32768"}});
  command.Required("DEVICE", &flags->device, "cpu, gpu or serve");
  AddThreadsFlag(command, &flags->threads);
  command.Text("--model", "DIR", &flags->model,
               "a model for the part on context; for gpu and serve models/nano where not given");
  command.Text("--json", "FILE", &flags->json, "write the figures to FILE as well");
  command.Text("--commit", "ID", &flags->commit,
               "name of the code measured, for the JSON file (default on a GPU: as built)");
  command.Text("--sources", "SHA256", &flags->sources, "hash of the CUDA sources, likewise");
  command.Texts("--part", "NAME", &flags->parts,
                "of the GPU's bench: lightning, lightning_backward, attention, moe, dense, "
                "block, train_layers or train; may be given again (default: all)");
  command.Switch("--brief", &flags->brief, "a model of a few million parameters: does all run?");
  command.Section("Of the server's bench");
  AddDeviceFlag(command, &flags->server_device);
  command.Whole("--document", "N", &flags->document, {1024, int64_t{1} << 31},
                "tokens of the document (default: 32,768, on a GPU 1,048,576)");
  command.Whole("--streams", "N", &flags->streams, {0, 1 << 16},
                "streams at once (default: 8, on a GPU 64 of four random layers of Text-01's "
                "widths); 0 leaves them out");
  command.Text("--snapshot-dir", "DIR", &flags->snapshot_dir,
               "folder in which snapshots are kept for the time of the bench (default: the "
               "system's for temporary files)");
  command.Action([flags] {
    const Result<int> code = RunBench(*flags);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
