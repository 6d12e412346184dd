// The subcommands, one file each.
#pragma once

#include "cli/command_line.h"

namespace mm01::cli {

void AddGenerate(CommandLine& line);
void AddChat(CommandLine& line);
void AddPerplexity(CommandLine& line);
void AddInspect(CommandLine& line);
void AddCompare(CommandLine& line);
void AddQuantize(CommandLine& line);
void AddServe(CommandLine& line);
void AddState(CommandLine& line);
void AddBench(CommandLine& line);
void AddData(CommandLine& line);
void AddTrain(CommandLine& line);
void AddReport(CommandLine& line);
void AddEval(CommandLine& line);
void AddCompletion(CommandLine& line);

}  // namespace mm01::cli
