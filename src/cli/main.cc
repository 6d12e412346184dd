#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "base/check.h"
#include "cli/command_line.h"
#include "cli/commands.h"
#include "cli/console.h"

namespace {

using namespace mm01::cli;

int Run(const std::vector<std::string>& words) {
  CommandLine line;
  AddGenerate(line);
  AddChat(line);
  AddPerplexity(line);
  AddInspect(line);
  AddCompare(line);
  AddQuantize(line);
  AddServe(line);
  AddState(line);
  AddBench(line);
  AddData(line);
  AddTrain(line);
  AddReport(line);
  AddEval(line);
  AddCompletion(line);
  const int code = line.Run(words);
  if (!PrintFailed()) return code;
  return ReportError(mm01::Status::Io("standard output: cannot write"));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Run({argv + 1, argv + argc});
  } catch (const std::bad_alloc&) {
    std::fputs("mm01: the system gave no more memory\n", stderr);
    return kExitFailed;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "mm01: a bug of mm01, please report it: %s\n", e.what());
    return kExitBug;
  }
}
