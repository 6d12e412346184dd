// The command line: subcommands with long flags, their help, and the same list for the completion
// scripts of shells.
//
//   mm01 COMMAND [--flag value | --flag=value | --switch | argument]... [-- argument...]
//
// A flag that takes one value and is given twice has the last. Every flag has a twin in the
// environment, --prompt-file in MM01_PROMPT_FILE, which counts where the command line is silent; a
// switch is 1 or 0 there. What is found wrong is one sentence with the value found, the value
// wanted and where.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace mm01::cli {

// Exit codes of the program.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;  // ran, and failed: beyond the tolerance, a disk that is full
inline constexpr int kExitBadInput = 2;       // a flag, a file, a model that cannot be used
inline constexpr int kExitBug = 70;           // our own mistake
inline constexpr int kExitInterrupted = 130;  // after Ctrl-C

struct Flag {
  std::string name;   // "--threads"
  std::string value;  // what it takes: "N"; empty for a switch
  std::string help;
  std::string section;
  std::vector<std::string> choices;  // where only these are taken
  std::function<Status(const std::string& text, const std::string& where)> set;
  bool given = false;
};

struct Argument {
  std::string name;  // "MODEL"
  std::string help;
  bool required = true;
  std::function<void(const std::string& text)> set;
};

template <typename T>
struct Limits {
  T min = std::numeric_limits<T>::lowest();
  T max = std::numeric_limits<T>::max();
};

// One subcommand. What the flags set must outlive it; values there before parsing are the defaults,
// and help names them.
class Command {
 public:
  // `summary` is one line; `details` are paragraphs apart by empty lines.
  Command(std::string name, std::string summary, std::string details,
          std::vector<std::string> examples);

  const std::string& name() const { return name_; }
  const std::string& summary() const { return summary_; }
  const std::vector<Flag>& flags() const { return flags_; }
  const std::vector<Argument>& arguments() const { return arguments_; }

  void Required(std::string name, std::string* out, std::string help);
  void Optional(std::string name, std::optional<std::string>* out, std::string help);

  // The heading in help of the flags that follow.
  void Section(std::string title) { section_ = std::move(title); }
  void Switch(std::string name, bool* out, std::string help);
  void Text(std::string name, std::string value, std::optional<std::string>* out, std::string help);
  void Texts(std::string name, std::string value, std::vector<std::string>* out, std::string help);
  void Choice(std::string name, std::vector<std::string> choices, std::string* out,
              std::string help);
  void Whole(std::string name, std::string value, int64_t* out, Limits<int64_t> limits,
             std::string help);
  void Whole(std::string name, std::string value, std::optional<int64_t>* out,
             Limits<int64_t> limits, std::string help);
  void Real(std::string name, std::string value, double* out, Limits<double> limits,
            std::string help);
  void Action(std::function<int()> run) { run_ = std::move(run); }

  std::string Help() const;
  // Reads what follows the command's name, then the environment. True: help was asked for.
  Result<bool> Parse(std::span<const std::string> words);
  int Run() const { return run_(); }

 private:
  Flag& Add(std::string name, std::string value, std::string help);
  std::string Usage() const;
  Status ParseFlag(const std::string& word, std::span<const std::string> words, size_t* next);
  Status ParseEnvironment();

  std::string name_;
  std::string summary_;
  std::string details_;
  std::vector<std::string> examples_;
  std::string section_ = "Flags";
  std::vector<Argument> arguments_;
  std::vector<Flag> flags_;
  std::function<int()> run_;
};

// Every subcommand of the program.
class CommandLine {
 public:
  Command& Add(Command command);
  const std::deque<Command>& commands() const { return commands_; }

  std::string Help() const;
  // Runs the command that `words` (without the program's name) ask for; the exit code. Prints help
  // to standard output and errors to standard error.
  int Run(std::span<const std::string> words);

 private:
  std::deque<Command> commands_;  // stays where it is while commands are added
};

// "MM01_PROMPT_FILE" of "--prompt-file".
std::string EnvironmentName(std::string_view flag);

}  // namespace mm01::cli
