#include "cli/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "cli/console.h"

namespace mm01::cli {
namespace {

constexpr size_t kWidth = 80;       // of help
constexpr size_t kHelpColumn = 26;  // where the text about a flag begins

// Words of `text` in lines of at most kWidth, each begun by `indent` spaces but for the first.
std::string Wrap(std::string_view text, size_t indent, size_t column) {
  std::string out;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    const bool fresh = out.empty();
    if (!fresh && column + 1 + end > kWidth) {
      out += '\n' + std::string(indent, ' ');
      column = indent;
    } else if (!fresh) {
      out += ' ';
      ++column;
    }
    out += text.substr(0, end);
    column += end;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

std::string HelpLine(const std::string& left, const std::string& help) {
  std::string line = "  " + left;
  if (line.size() + 2 > kHelpColumn) {
    line += '\n' + std::string(kHelpColumn, ' ');
  } else {
    line.resize(kHelpColumn, ' ');
  }
  return line + Wrap(help, kHelpColumn, kHelpColumn) + '\n';
}

std::string Paragraphs(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t end = std::min(text.find("\n\n"), text.size());
    out += Wrap(text.substr(0, end), 0, 0) + "\n\n";
    text.remove_prefix(std::min(end + 2, text.size()));
  }
  return out;
}

template <typename T>
std::string LimitsText(const Limits<T>& limits) {
  const bool has_min = limits.min != std::numeric_limits<T>::lowest();
  const bool has_max = limits.max != std::numeric_limits<T>::max();
  if (has_min && has_max) return fmt::format(" from {} to {}", limits.min, limits.max);
  if (has_min) return fmt::format(" of {} or more", limits.min);
  if (has_max) return fmt::format(" of {} or less", limits.max);
  return "";
}

template <typename T>
Status ParseNumber(const std::string& text, const std::string& where, const char* kind,
                   const Limits<T>& limits, T* out) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  const bool is_finite = std::isfinite(static_cast<double>(value));
  if (error == std::errc() && stop == end && is_finite && limits.min <= value &&
      value <= limits.max) {
    *out = value;
    return Status::Ok();
  }
  return Status::Invalid(
      fmt::format("{} is '{}', wanted {}{}", where, text, kind, LimitsText(limits)));
}

Status ParseSwitch(const std::string& text, const std::string& where, bool* out) {
  if (text != "0" && text != "1" && !text.empty()) {
    return Status::Invalid(fmt::format("{} is '{}', wanted 0 or 1", where, text));
  }
  *out = text == "1";
  return Status::Ok();
}

std::string WithDefault(std::string help, const std::string& value) {
  return fmt::format("{} (default {})", help, value);
}

}  // namespace

std::string EnvironmentName(std::string_view flag) {
  std::string name = "MM01_";
  for (const char c : flag.substr(2)) {
    name += c == '-' ? '_' : static_cast<char>('a' <= c && c <= 'z' ? c - 'a' + 'A' : c);
  }
  return name;
}

Command::Command(std::string name, std::string summary, std::string details,
                 std::vector<std::string> examples)
    : name_(std::move(name)),
      summary_(std::move(summary)),
      details_(std::move(details)),
      examples_(std::move(examples)) {}

Flag& Command::Add(std::string name, std::string value, std::string help) {
  Check(name.starts_with("--"), "flags are long");
  flags_.push_back({.name = std::move(name),
                    .value = std::move(value),
                    .help = std::move(help),
                    .section = section_});
  return flags_.back();
}

void Command::Required(std::string name, std::string* out, std::string help) {
  arguments_.push_back(
      {std::move(name), std::move(help), true, [out](const std::string& text) { *out = text; }});
}

void Command::Optional(std::string name, std::optional<std::string>* out, std::string help) {
  arguments_.push_back(
      {std::move(name), std::move(help), false, [out](const std::string& text) { *out = text; }});
}

void Command::Switch(std::string name, bool* out, std::string help) {
  Add(std::move(name), "", std::move(help)).set = [out](const std::string& text,
                                                        const std::string& where) {
    return ParseSwitch(text, where, out);
  };
}

void Command::Text(std::string name, std::string value, std::optional<std::string>* out,
                   std::string help) {
  Add(std::move(name), std::move(value), std::move(help)).set = [out](const std::string& text,
                                                                      const std::string&) {
    *out = text;
    return Status::Ok();
  };
}

void Command::Texts(std::string name, std::string value, std::vector<std::string>* out,
                    std::string help) {
  Add(std::move(name), std::move(value), std::move(help)).set = [out](const std::string& text,
                                                                      const std::string&) {
    out->push_back(text);
    return Status::Ok();
  };
}

void Command::Choice(std::string name, std::vector<std::string> choices, std::string* out,
                     std::string help) {
  Flag& flag = Add(std::move(name), fmt::format("{}", fmt::join(choices, "|")),
                   out->empty() ? std::move(help) : WithDefault(std::move(help), *out));
  flag.set = [out, choices](const std::string& text, const std::string& where) {
    if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
      return Status::Invalid(
          fmt::format("{} is '{}', wanted one of {}", where, text, fmt::join(choices, ", ")));
    }
    *out = text;
    return Status::Ok();
  };
  flag.choices = std::move(choices);
}

void Command::Whole(std::string name, std::string value, int64_t* out, Limits<int64_t> limits,
                    std::string help) {
  Add(std::move(name), std::move(value), WithDefault(std::move(help), std::to_string(*out))).set =
      [out, limits](const std::string& text, const std::string& where) {
        return ParseNumber(text, where, "a whole number", limits, out);
      };
}

void Command::Whole(std::string name, std::string value, std::optional<int64_t>* out,
                    Limits<int64_t> limits, std::string help) {
  Add(std::move(name), std::move(value), std::move(help)).set =
      [out, limits](const std::string& text, const std::string& where) {
        int64_t number = 0;
        MM01_RETURN_IF_ERROR(ParseNumber(text, where, "a whole number", limits, &number));
        *out = number;
        return Status::Ok();
      };
}

void Command::Real(std::string name, std::string value, double* out, Limits<double> limits,
                   std::string help) {
  Add(std::move(name), std::move(value), WithDefault(std::move(help), fmt::format("{}", *out)))
      .set = [out, limits](const std::string& text, const std::string& where) {
    return ParseNumber(text, where, "a number", limits, out);
  };
}

std::string Command::Usage() const {
  std::string usage = "mm01 " + name_;
  for (const Argument& a : arguments_) usage += a.required ? " " + a.name : " [" + a.name + "]";
  return usage + " [flags]";
}

std::string Command::Help() const {
  std::string text = "usage: " + Usage() + "\n\n" + Paragraphs(summary_) + Paragraphs(details_);
  if (!examples_.empty()) text += "Examples:\n";
  for (const std::string& example : examples_) text += "  " + example + '\n';
  if (!arguments_.empty()) text += "\nArguments:\n";
  for (const Argument& a : arguments_) text += HelpLine(a.name, a.help);
  std::string section;
  for (const Flag& f : flags_) {
    if (f.section != section) text += '\n' + f.section + ":\n";
    section = f.section;
    text += HelpLine(f.value.empty() ? f.name : f.name + ' ' + f.value, f.help);
  }
  if (flags_.empty()) return text;
  const std::string& first = flags_.front().name;
  return text + '\n' +
         Wrap(fmt::format("Every flag has a twin in the environment ({} is {}); the command line "
                          "wins.",
                          first, EnvironmentName(first)),
              0, 0) +
         '\n';
}

Status Command::ParseFlag(const std::string& word, std::span<const std::string> words,
                          size_t* next) {
  const size_t equals = word.find('=');
  const std::string name = word.substr(0, equals);
  const auto flag =
      std::find_if(flags_.begin(), flags_.end(), [&](const Flag& f) { return f.name == name; });
  if (flag == flags_.end()) {
    return Status::Invalid(
        fmt::format("'{}' is no flag of this command; mm01 {} --help lists them{}", name, name_,
                    arguments_.empty() ? ""
                                       : ", and '--' comes before an argument that begins "
                                         "with '-'"));
  }
  flag->given = true;
  if (flag->value.empty()) {
    if (equals == std::string::npos) return flag->set("1", name);
    return Status::Invalid(
        fmt::format("{} is given '{}', wanted no value", name, word.substr(equals + 1)));
  }
  if (equals != std::string::npos) return flag->set(word.substr(equals + 1), name);
  if (*next == words.size()) {
    return Status::Invalid(fmt::format("{} has no value, wanted {}", name, flag->value));
  }
  return flag->set(words[(*next)++], name);
}

Status Command::ParseEnvironment() {
  for (Flag& flag : flags_) {
    const std::string name = EnvironmentName(flag.name);
    const char* value = flag.given ? nullptr : std::getenv(name.c_str());
    if (value != nullptr) {
      MM01_RETURN_IF_ERROR(flag.set(value, "the environment variable " + name));
    }
  }
  return Status::Ok();
}

Result<bool> Command::Parse(std::span<const std::string> words) {
  size_t next = 0, argument = 0;
  bool flags_end = false;
  while (next < words.size()) {
    const std::string& word = words[next++];
    if (!flags_end && (word == "--help" || word == "-h")) return true;
    if (!flags_end && word == "--") {
      flags_end = true;
    } else if (!flags_end && word.size() > 1 && word[0] == '-') {
      MM01_RETURN_IF_ERROR(ParseFlag(word, words, &next));
    } else if (argument < arguments_.size()) {
      arguments_[argument++].set(word);
    } else {
      return Status::Invalid(
          fmt::format("'{}' is one argument too many; usage: {}", word, Usage()));
    }
  }
  if (argument < arguments_.size() && arguments_[argument].required) {
    return Status::Invalid(
        fmt::format("{} is missing; usage: {}", arguments_[argument].name, Usage()));
  }
  MM01_RETURN_IF_ERROR(ParseEnvironment());
  return false;
}

Command& CommandLine::Add(Command command) {
  commands_.push_back(std::move(command));
  return commands_.back();
}

std::string CommandLine::Help() const {
  std::string text =
      "usage: mm01 COMMAND [flags]\n\n"
      "Runs MiniMax-01 models: reads long texts, writes what comes next.\n\nCommands:\n";
  for (const Command& c : commands_) text += HelpLine(c.name(), c.summary());
  return text +
         "\nmm01 COMMAND --help tells more. Text and tables go to standard output, everything\n"
         "else to standard error. Exit codes: 0 done, 1 failed, 2 bad input, 70 a bug of\n"
         "mm01, 130 stopped by Ctrl-C.\n";
}

int CommandLine::Run(std::span<const std::string> words) {
  if (words.empty() || words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    Print(Help());
    return kExitOk;
  }
  const auto command = std::find_if(commands_.begin(), commands_.end(),
                                    [&](const Command& c) { return c.name() == words[0]; });
  if (command == commands_.end()) {
    std::vector<std::string> names;
    for (const Command& c : commands_) names.push_back(c.name());
    return ReportError(Status::Invalid(
        fmt::format("'{}' is no command, wanted one of {}", words[0], fmt::join(names, ", "))));
  }
  const Result<bool> help = command->Parse(words.subspan(1));
  if (!help.ok()) return ReportError(help.status());
  if (!*help) return command->Run();
  Print(command->Help());
  return kExitOk;
}

}  // namespace mm01::cli
