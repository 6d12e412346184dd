// Lines from a person: edited with the arrow keys and a history where input is a terminal, plain
// lines where it is not.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mm01::cli {

class LineEditor {
 public:
  enum class End { kLine, kInterrupt, kEof };
  struct Input {
    End end = End::kLine;
    std::string line;  // without its newline
  };

  // Keys: left, right, home, end, backspace, delete, up and down for what was typed before, Ctrl-A,
  // -E, -U, -K, -W; Ctrl-C gives up the line, Ctrl-D on an empty one ends the input.
  Input Read(std::string_view prompt);

 private:
  Input ReadPlain();
  Input Edit(std::string_view prompt);
  void Draw(std::string_view prompt) const;
  bool Apply(char key);  // false: the line is done
  void ApplyEscape();
  void Recall(size_t entry);

  std::vector<std::string> history_;
  size_t entry_ = 0;  // of history_, or its size for the line that is being typed
  std::string typed_;
  std::string line_;
  size_t cursor_ = 0;  // in bytes, at the beginning of a code point
};

}  // namespace mm01::cli
