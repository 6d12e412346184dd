// mm01 completion: what shells need to complete commands and flags.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>

#include "cli/commands.h"
#include "cli/console.h"

namespace mm01::cli {
namespace {

std::string Names(const CommandLine& line) {
  std::string names;
  for (const Command& c : line.commands()) names += (names.empty() ? "" : " ") + c.name();
  return names;
}

std::string FlagNames(const Command& command) {
  std::string names = "--help";
  for (const Flag& f : command.flags()) names += ' ' + f.name;
  return names;
}

// Files are completed wherever the word is no flag.
std::string Bash(const CommandLine& line) {
  std::string cases, choices;
  for (const Command& c : line.commands()) {
    cases += fmt::format("    {}) words=\"{}\" ;;\n", c.name(), FlagNames(c));
    for (const Flag& f : c.flags()) {
      if (f.choices.empty()) continue;
      choices +=
          fmt::format("    {}:{}) words=\"{}\" ;;\n", c.name(), f.name, fmt::join(f.choices, " "));
    }
  }
  return fmt::format(
      "# source <(mm01 completion bash)\n"
      "_mm01() {{\n"
      "  local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words=\n"
      "  if ((COMP_CWORD == 1)); then\n"
      "    COMPREPLY=($(compgen -W \"{} --help\" -- \"$word\"))\n"
      "    return\n"
      "  fi\n"
      "  case $command:${{COMP_WORDS[COMP_CWORD - 1]}} in\n"
      "    completion:*) words=\"bash zsh fish\" ;;\n"
      "{}"
      "  esac\n"
      "  [[ -z $words && $word == -* ]] && case $command in\n"
      "{}"
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
      "  [[ -n $words ]] || COMPREPLY=($(compgen -f -- \"$word\"))\n"
      "}}\n"
      "complete -o filenames -F _mm01 mm01\n",
      Names(line), choices, cases);
}

// Zsh takes help in brackets and quotes.
std::string ZshText(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':') out += '\\';
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out;
}

std::string Zsh(const CommandLine& line) {
  std::string commands, cases;
  for (const Command& c : line.commands()) {
    commands += fmt::format("    '{}:{}'\n", c.name(), ZshText(c.summary()));
    cases += fmt::format("    {}) _arguments \\\n", c.name());
    for (const Flag& f : c.flags()) {
      std::string value;
      if (!f.choices.empty()) {
        value = fmt::format(":value:({})", fmt::join(f.choices, " "));
      } else if (!f.value.empty()) {
        value = fmt::format(":{}:_files", f.value);
      }
      cases += fmt::format("      '{}[{}]{}' \\\n", f.name, ZshText(f.help), value);
    }
    cases += c.name() == "completion" ? "      '*:shell:(bash zsh fish)' ;;\n"
                                      : "      '*:file:_files' ;;\n";
  }
  return fmt::format(
      "#compdef mm01\n"
      "# source <(mm01 completion zsh), or keep it as _mm01 in a folder of $fpath\n"
      "_mm01() {{\n"
      "  local -a commands=(\n{}  )\n"
      "  if ((CURRENT == 2)); then\n"
      "    _describe command commands\n"
      "    return\n"
      "  fi\n"
      "  local command=$words[2]\n"
      "  shift words\n"
      "  ((CURRENT--))\n"
      "  case $command in\n{}  esac\n"
      "}}\n"
      "compdef _mm01 mm01\n",
      commands, cases);
}

std::string FishText(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string Fish(const CommandLine& line) {
  std::string text = "# mm01 completion fish | source\n";
  for (const Command& c : line.commands()) {
    text += fmt::format("complete -c mm01 -f -n __fish_use_subcommand -a {} -d '{}'\n", c.name(),
                        FishText(c.summary()));
    for (const Flag& f : c.flags()) {
      std::string value;
      if (!f.choices.empty()) {
        value = fmt::format(" -x -a '{}'", fmt::join(f.choices, " "));
      } else if (!f.value.empty()) {
        value = " -r";
      }
      text += fmt::format("complete -c mm01 -n '__fish_seen_subcommand_from {}' -l {}{} -d '{}'\n",
                          c.name(), f.name.substr(2), value, FishText(f.help));
    }
  }
  return text +
         "complete -c mm01 -f -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'\n";
}

Result<int> PrintScript(const CommandLine& line, const std::string& shell) {
  if (shell != "bash" && shell != "zsh" && shell != "fish") {
    return Status::Invalid(fmt::format("SHELL is '{}', wanted one of bash, zsh, fish", shell));
  }
  Print(shell == "bash" ? Bash(line) : shell == "zsh" ? Zsh(line) : Fish(line));
  return kExitOk;
}

}  // namespace

void AddCompletion(CommandLine& line) {
  auto shell = std::make_shared<std::string>();
  Command& command = line.Add({"completion",
                               "Prints a script that completes commands and flags in a shell.",
                               "",
                               {"source <(mm01 completion bash)", "source <(mm01 completion zsh)",
                                "mm01 completion fish | source"}});
  command.Required("SHELL", shell.get(), "bash, zsh or fish");
  command.Action([shell, &line] {
    const Result<int> code = PrintScript(line, *shell);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
