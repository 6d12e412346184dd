// mm01 state: what a saved state holds.
#include <fmt/core.h>

#include <memory>

#include "base/format.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "infer/saved_state.h"
#include "model/text01/config.h"

namespace mm01::cli {
namespace {

struct StateFlags {
  std::string file;
  bool json = false;
};

std::string Table(const infer::SavedStateInfo& info, const TextConfig& config) {
  const auto bytes = [](int64_t n) { return FormatBytes(static_cast<double>(n)); };
  std::string text;
  const auto row = [&](const char* name, const std::string& value) {
    text += fmt::format("{:<18}{}\n", name, value);
  };
  row("tokens", FormatCount(info.num_tokens));
  row("lightning state",
      fmt::format("{} in {} layers", bytes(info.state_bytes), config.num_lightning_layers()));
  row("KV cache", fmt::format("{} in {} layers, {}", bytes(info.kv_bytes),
                              config.num_softmax_layers(), info.kv));
  row("model", fmt::format("fingerprint {}, hidden size {}, {} layers, vocabulary {}", info.model,
                           config.hidden_size, config.num_layers(), config.vocab_size));
  row("format version", std::to_string(info.version));
  row("checksum", "ok");
  return text;
}

Result<int> RunState(const StateFlags& flags) {
  MM01_ASSIGN_OR_RETURN(const infer::SavedStateInfo info, infer::InspectState(flags.file));
  if (flags.json) {
    const Json json{{"version", info.version},   {"model", info.model},
                    {"tokens", info.num_tokens}, {"state_bytes", info.state_bytes},
                    {"kv_bytes", info.kv_bytes}, {"kv", info.kv},
                    {"config", info.config}};
    Print(JsonText(json, 2) + "\n");
    return kExitOk;
  }
  MM01_ASSIGN_OR_RETURN(const TextConfig config, ParseTextConfig(info.config, flags.file));
  Print(Table(info, config));
  return kExitOk;
}

}  // namespace

void AddState(CommandLine& line) {
  auto flags = std::make_shared<StateFlags>();
  Command& command = line.Add(
      {"state",
       "Shows what a saved state holds, and checks it.",
       "FILE is what generate --save-state or /save in a chat wrote. All of it is read and "
       "its checksum compared; no model is needed.",
       {"mm01 state book.state", "mm01 state book.state --json"}});
  command.Required("FILE", &flags->file, "a saved state");
  command.Switch("--json", &flags->json, "one JSON object in place of the table");
  command.Action([flags] {
    const Result<int> code = RunState(*flags);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
