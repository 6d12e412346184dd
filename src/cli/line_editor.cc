#include "cli/line_editor.h"

#include <fmt/core.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <utility>

#include "cli/console.h"

namespace mm01::cli {
namespace {

constexpr char kCtrlC = 3, kCtrlD = 4, kEscape = 27, kBackspace = 127;

// Keys one by one and unseen, for as long as one line is typed.
class RawMode {
 public:
  RawMode() {
    tcgetattr(STDIN_FILENO, &before_);
    termios raw = before_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO | ISIG | IEXTEN);
    raw.c_iflag &= ~static_cast<tcflag_t>(IXON | ICRNL);
    tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
  }
  ~RawMode() { tcsetattr(STDIN_FILENO, TCSADRAIN, &before_); }
  RawMode(const RawMode&) = delete;
  RawMode& operator=(const RawMode&) = delete;

 private:
  termios before_{};
};

std::optional<char> ReadKey() {
  char key = 0;
  if (::read(STDIN_FILENO, &key, 1) != 1) return std::nullopt;
  return key;
}

// The rest of an escape sequence follows at once; a lone escape key has none.
bool KeyWaits() {
  pollfd in{STDIN_FILENO, POLLIN, 0};
  return poll(&in, 1, 20) > 0;
}

size_t Columns() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

bool Continues(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

size_t Before(const std::string& s, size_t at) {
  if (at > 0) --at;
  while (at > 0 && Continues(s[at])) --at;
  return at;
}

size_t After(const std::string& s, size_t at) {
  if (at < s.size()) ++at;
  while (at < s.size() && Continues(s[at])) ++at;
  return at;
}

size_t CodePoints(std::string_view s) {
  return static_cast<size_t>(
      std::count_if(s.begin(), s.end(), [](char c) { return !Continues(c); }));
}

}  // namespace

LineEditor::Input LineEditor::Read(std::string_view prompt) {
  if (!InputIsTerminal()) return ReadPlain();
  Input input = Edit(prompt);
  if (input.end == End::kLine && !input.line.empty()) history_.push_back(input.line);
  return input;
}

LineEditor::Input LineEditor::ReadPlain() {
  Input input;
  if (!std::getline(std::cin, input.line)) input.end = End::kEof;
  return input;
}

LineEditor::Input LineEditor::Edit(std::string_view prompt) {
  const RawMode raw;
  line_.clear();
  typed_.clear();
  cursor_ = 0;
  entry_ = history_.size();
  while (true) {
    Draw(prompt);
    const std::optional<char> key = ReadKey();
    const bool ends = !key || (*key == kCtrlD && line_.empty()) || *key == kCtrlC;
    if (!ends && Apply(*key)) continue;
    fmt::print(stderr, "\r\n");
    if (!ends) return {End::kLine, line_};
    return {key && *key == kCtrlC ? End::kInterrupt : End::kEof, ""};
  }
}

// What does not fit on the row is cut off, so that the cursor stays in sight.
void LineEditor::Draw(std::string_view prompt) const {
  const size_t room = std::max<size_t>(Columns(), prompt.size() + 10) - prompt.size() - 1;
  size_t begin = 0;
  while (CodePoints(std::string_view(line_).substr(begin, cursor_ - begin)) > room) {
    begin = After(line_, begin);
  }
  size_t end = line_.size();
  while (CodePoints(std::string_view(line_).substr(begin, end - begin)) > room) {
    end = Before(line_, end);
  }
  const size_t column =
      prompt.size() + CodePoints(std::string_view(line_).substr(begin, cursor_ - begin));
  fmt::print(stderr, "\r{}{}\x1b[K\r\x1b[{}C", prompt, line_.substr(begin, end - begin), column);
}

bool LineEditor::Apply(char key) {
  switch (key) {
    case '\r':
    case '\n':
      return false;
    case 'A' - '@':
      cursor_ = 0;
      break;
    case 'E' - '@':
      cursor_ = line_.size();
      break;
    case 'U' - '@':
      line_.erase(0, std::exchange(cursor_, 0));
      break;
    case 'K' - '@':
      line_.erase(cursor_);
      break;
    case 'W' - '@': {
      size_t begin = cursor_;
      while (begin > 0 && line_[begin - 1] == ' ') --begin;
      while (begin > 0 && line_[begin - 1] != ' ') --begin;
      line_.erase(begin, cursor_ - begin);
      cursor_ = begin;
      break;
    }
    case 'H' - '@':
    case kBackspace: {
      const size_t begin = Before(line_, cursor_);
      line_.erase(begin, cursor_ - begin);
      cursor_ = begin;
      break;
    }
    case kEscape:
      ApplyEscape();
      break;
    default:
      if (static_cast<unsigned char>(key) >= ' ' || key == '\t') line_.insert(cursor_++, 1, key);
  }
  return true;
}

// "[A" to "[D" and "[H", "[F" with or without numbers between, and "[3~".
void LineEditor::ApplyEscape() {
  std::string sequence;
  while (KeyWaits() && sequence.size() < 8) {
    sequence += ReadKey().value_or('~');
    const char last = sequence.back();
    if (sequence.size() > 1 && (last == '~' || ('A' <= last && last <= 'Z'))) break;
  }
  if (sequence.size() < 2) return;
  switch (sequence.back()) {
    case 'A':
      return Recall(entry_ > 0 ? entry_ - 1 : 0);
    case 'B':
      return Recall(std::min(entry_ + 1, history_.size()));
    case 'C':
      cursor_ = After(line_, cursor_);
      return;
    case 'D':
      cursor_ = Before(line_, cursor_);
      return;
    case 'H':
      cursor_ = 0;
      return;
    case 'F':
      cursor_ = line_.size();
      return;
    case '~':
      if (sequence[1] == '3') line_.erase(cursor_, After(line_, cursor_) - cursor_);
      if (sequence[1] == '1') cursor_ = 0;
      if (sequence[1] == '4') cursor_ = line_.size();
  }
}

void LineEditor::Recall(size_t entry) {
  if (entry == entry_) return;
  if (entry_ == history_.size()) typed_ = line_;
  entry_ = entry;
  line_ = entry == history_.size() ? typed_ : history_[entry];
  cursor_ = line_.size();
}

}  // namespace mm01::cli
