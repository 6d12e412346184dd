// mm01 report: a training run on one page.
#include "train/report.h"

#include <fmt/core.h>

#include <memory>

#include "cli/commands.h"
#include "cli/console.h"
#include "io/file.h"

namespace mm01::cli {
namespace {

Result<int> RunReport(const std::string& run, const std::optional<std::string>& out) {
  MM01_ASSIGN_OR_RETURN(const std::string html, train::MakeReport(run));
  const std::string path = out.value_or(run + "/report.html");
  MM01_RETURN_IF_ERROR(WriteFileAtomically(path, html));
  Print(path + "\n");
  return kExitOk;
}

}  // namespace

void AddReport(CommandLine& line) {
  struct Flags {
    std::string run;
    std::optional<std::string> out;
  };
  auto flags = std::make_shared<Flags>();
  Command& command = line.Add(
      {"report",
       "Draws a training run: one HTML page with curves and a heat map of the experts.",
       "Reads metrics.jsonl of the run, also while it goes on. The page needs nothing but a "
       "browser.",
       {"mm01 report runs/tiny-cpu"}});
  command.Required("RUN", &flags->run, "folder of `mm01 train`");
  command.Text("--out", "FILE", &flags->out, "where to write (default: RUN/report.html)");
  command.Action([flags] {
    const Result<int> code = RunReport(flags->run, flags->out);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
