#include "cli/console.h"

#include <fmt/core.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>

#include "cli/command_line.h"

namespace mm01::cli {
namespace {

bool print_failed = false;
std::atomic<int> num_interrupts{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may not wait");

void OnInterrupt(int signal) {
  if (num_interrupts.fetch_add(1) < 2) return;
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

int ExitCode(Code code) {
  switch (code) {
    case Code::kOk:
      return kExitOk;
    case Code::kIo:
      return kExitFailed;
    case Code::kCancelled:
      return kExitInterrupted;
    case Code::kInvalid:
    case Code::kNotFound:
    case Code::kUnsupported:
    case Code::kTooLarge:
      return kExitBadInput;
  }
  return kExitBug;
}

}  // namespace

void Print(std::string_view text) {
  const size_t written = std::fwrite(text.data(), 1, text.size(), stdout);
  print_failed |= written != text.size() || std::fflush(stdout) != 0;
}

bool PrintFailed() {
  return print_failed;
}

int ReportError(const Status& status) {
  fmt::print(stderr, "mm01: {}\n", status.message());
  return ExitCode(status.code());
}

Notes::Notes(bool quiet) : quiet_(quiet), is_terminal_(isatty(STDERR_FILENO) == 1) {}

void Notes::Write(std::string_view text) const {
  if (!quiet_) std::fwrite(text.data(), 1, text.size(), stderr);
}

void Notes::WriteFaint(std::string_view text) const {
  if (is_terminal_) Write("\x1b[2m");
  Write(text);
  if (is_terminal_) Write("\x1b[0m");
}

bool InputIsTerminal() {
  return isatty(STDIN_FILENO) == 1;
}

bool OutputIsTerminal() {
  return isatty(STDOUT_FILENO) == 1;
}

InterruptScope::InterruptScope() {
  num_interrupts = 0;
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

InterruptScope::~InterruptScope() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

bool InterruptScope::requested() {
  return num_interrupts > 0;
}

}  // namespace mm01::cli
