// What the program says and hears: the product on standard output, everything else on standard
// error, and Ctrl-C.
#pragma once

#include <string_view>

#include "base/status.h"

namespace mm01::cli {

// To standard output, and out at once.
void Print(std::string_view text);
// True once something could not be written there.
bool PrintFailed();

// One sentence on standard error; the exit code that fits.
int ReportError(const Status& status);

// Standard error, for what is of use and not the product: plans, progress, notes.
class Notes {
 public:
  explicit Notes(bool quiet);

  bool quiet() const { return quiet_; }
  bool is_terminal() const { return is_terminal_; }

  // As it is; the caller ends the line. Nothing where quiet.
  void Write(std::string_view text) const;
  // The same in faint letters on a terminal.
  void WriteFaint(std::string_view text) const;

 private:
  bool quiet_;
  bool is_terminal_;
};

bool InputIsTerminal();
bool OutputIsTerminal();

// While one lives, Ctrl-C or SIGTERM sets a flag and the program goes on, to stop where it is safe.
// The third ends it at once. One at a time.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  static bool requested();
};

}  // namespace mm01::cli
